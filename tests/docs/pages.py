"""The Markdown pages, their code blocks and their links, for the tests beside this file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=fence)$", re.M | re.S
)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A) {4}\S.*\n(?: {4,}\S.*\n)*")


@dataclass(frozen=True)
class Block:
    """A code block: where it is, its language ("" for an indented one) and its lines."""

    page: str
    line: int
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def text_of(page: Path) -> str:
    """Return a page's text; what is commented out is blank, so that lines keep their numbers."""
    text = page.read_text(encoding="utf-8")
    return _COMMENT.sub(lambda found: re.sub(r"[^\n]", "", found[0]), text)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page, fenced and indented."""
    text, shown = text_of(page), page.relative_to(ROOT).as_posix()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        yield Block(shown, line, found["language"].strip(), found["body"])
    rest = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in _INDENTED.finditer(rest):
        yield Block(shown, rest.count("\n", 0, found.start()) + 1, "", found[0])


def prose(page: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"`[^`\n]+`", "", _INDENTED.sub("\n", _FENCE.sub("\n", text_of(page))))
