"""Draws the floors and the tree of docs/architecture.md from what is on disk.

``python tests/architecture/draw_tree.py --write`` rewrites both blocks. A file's line is the first
line of its docstring; data files and folders without one keep the words that the page has.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from laws import LAWS
from source import ROOT, SRC

PAGE = ROOT / "docs" / "architecture.md"
MISSING = "(say in a few words what it holds)"
_LINE = re.compile(r"^ {4}(?P<indent> {2,4})(?P<name>[\w.][\w./-]*) {2,}(?P<words>\S.*)$")
_WIDTH = 32


def described(page: str) -> dict[str, str]:
    """Return the words that a page has for each path of its tree."""
    words, folder = {}, ""
    for line in page.splitlines():
        if match := _LINE.match(line):
            name = match["name"]
            if len(match["indent"]) == 2:
                folder = name if name.endswith("/") else ""
            words[name if len(match["indent"]) == 2 else folder + name] = match["words"]
    return words


def tree(words: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the tree: loose modules, then a room after the other."""
    yield "    src/mpskit/"
    for path in sorted(p for p in SRC.iterdir() if p.suffix == ".py"):
        yield _line(2, path.name, _says(path, words.get(path.name, MISSING)))
    for room in sorted(p for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"):
        name = f"{room.name}/"
        yield _line(2, name, _says(room / "__init__.py", words.get(name, MISSING)))
        for file in _files(room):
            shown = file.relative_to(room).as_posix()
            yield _line(4, shown, _says(file, words.get(name + shown, MISSING)))


def floors() -> Iterator[str]:
    """Yield the floors of laws.toml, the highest first: a line imports only from lines below it."""
    for floor in reversed(LAWS["floors"]):
        yield "    " + "  |  ".join(_floor_name(room) for room in floor)


def _floor_name(room: str) -> str:
    if not room:
        return "__init__.py"
    path = SRC / room.replace(".", "/")
    return path.relative_to(SRC).as_posix() + ("/" if path.is_dir() else ".py")


def _files(room: Path) -> list[Path]:
    """Return a room's files, those in subfolders last; a subfolder's own words are its __init__'s."""
    found = [p for p in room.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    kept = [p for p in found if p != room / "__init__.py"]
    return sorted(kept, key=lambda p: (len(p.relative_to(room).parts), p.as_posix()))


def _says(path: Path, otherwise: str) -> str:
    if path.suffix != ".py" or not path.exists():
        return otherwise
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or MISSING
    return text.partition("\n")[0].replace("``", "").removesuffix(".")


def _line(indent: int, name: str, words: str) -> str:
    return f"    {' ' * indent}{name}".ljust(_WIDTH) + " " + words


def drawn(page: str) -> str:
    """Return the page with both blocks as they should be."""
    blocks = {"floors": "\n".join(floors()), "tree": "\n".join(tree(described(page)))}
    for name, text in blocks.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        assert block.search(page), f"docs/architecture.md has no block {name}"
        page = block.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = drawn(old)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    print(
        "nothing to draw"
        if old == new
        else "\n".join(sorted({*new.split("\n")} - {*old.split("\n")}))
    )
