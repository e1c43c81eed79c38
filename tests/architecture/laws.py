"""The laws of the house, each a function from the source to what breaks it.

``laws.toml`` says who may do what, ``known.toml`` lists the present violations. Run as a script,
this prints every violation by law; with ``--shrink`` it removes from ``known.toml`` what is mended.
"""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from source import Module, Source

HERE = Path(__file__).parent
LAWS: dict[str, Any] = tomllib.loads((HERE / "laws.toml").read_text(encoding="utf-8"))
KNOWN = HERE / "known.toml"

Finding = tuple[str, str]  # "file: what", as laws.toml and known.toml write it, and where it is
_OS = ("ctypes", "psutil", "subprocess", "resource")
_OS_PATHS = ("/proc", "/sys/")
_BACKENDS = re.compile(
    r"torch\.(cuda|mps|xpu|accelerator|backends\.mps|backends\.cuda)\b|torch\._C\._(mps|cuda|xpu)"
)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def floor_of(name: str) -> int:
    """Return the floor of a file, 0 for the lowest: that of the longest listed name it is under."""
    listed = {room: floor for floor, rooms in enumerate(LAWS["floors"]) for room in rooms}
    while name and name not in listed:
        name = name.rpartition(".")[0]
    return listed[name]


def _place(module: Module, node: Any, what: str) -> Finding:
    return f"{module.name or '__init__'}: {what}", f"src/mpskit/{module.shown}:{node.lineno}"


def _layers(source: Source, *, typing: bool) -> Iterator[Finding]:
    for module in source.modules:
        for found in source.imports(module):
            own, other = floor_of(module.name), floor_of(found.target)
            same_room = found.target.partition(".")[0] == module.room
            if found.typing == typing and not (own > other or (own == other and same_room)):
                yield _place(module, found, found.target or "the package")


def layers(source: Source) -> Iterator[Finding]:
    """Imports that run and do not go down."""
    return _layers(source, typing=False)


def layers_typing(source: Source) -> Iterator[Finding]:
    """Imports for type checkers that do not go down."""
    return _layers(source, typing=True)


def operating_system(source: Source) -> Iterator[Finding]:
    """Modules and folders through which the operating system is asked."""
    for module in source.modules:
        for name, line, _ in module.imported():
            if (top := name.partition(".")[0]) in _OS:
                yield f"{module.name}: {top}", f"src/mpskit/{module.shown}:{line}"
        for text in module.texts():
            if text.value.startswith(_OS_PATHS):
                yield _place(module, text, text.value)


def torch_backends(source: Source) -> Iterator[Finding]:
    """Attributes of torch's backends, also by ``getattr`` and by import."""
    for module in source.modules:
        for name, line, typing in module.imported():
            if (found := _BACKENDS.match(name)) and not typing:
                yield f"{module.name}: {found[0]}", f"src/mpskit/{module.shown}:{line}"
        for node in module.nodes:
            if (dotted := _attribute(node)) and (found := _BACKENDS.fullmatch(dotted)):
                yield _place(module, node, found[0])
            elif isinstance(node, ast.Attribute) and re.match(r"_mps_\w", node.attr):
                yield _place(module, node, node.attr)


def _attribute(node: ast.AST) -> str:
    """Return ``torch.mps`` for that attribute and for ``getattr(torch, "mps")``, else ''."""
    if isinstance(node, ast.Attribute):
        return ast.unparse(node)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
        owner, name, *_ = node.args
        if isinstance(name, ast.Constant):
            return f"{ast.unparse(owner)}.{name.value}"
    return ""


def _names_of(prefix: str) -> Callable[[Source], Iterator[Finding]]:
    def law(source: Source) -> Iterator[Finding]:
        for module in source.modules:
            for text in module.texts():
                if re.fullmatch(rf"{prefix}_[A-Z_]+", text.value):
                    yield _place(module, text, text.value)

    return law


def versions(source: Source) -> Iterator[Finding]:
    """Imports of packaging, and ordering comparisons with a tuple of numbers."""
    for module in source.modules:
        for name, line, _ in module.imported():
            if name.startswith("packaging"):
                yield f"{module.name}: packaging", f"src/mpskit/{module.shown}:{line}"
        for node in module.nodes:
            if not (isinstance(node, ast.Compare) and isinstance(node.ops[0], _ORDERINGS)):
                continue
            if any(isinstance(side, ast.Tuple) for side in (node.left, *node.comparators)):
                yield _place(module, node, ast.unparse(node))


def logger(source: Source) -> Iterator[Finding]:
    """Every place that makes a logger."""
    for module in source.modules:
        for node in module.nodes:
            if isinstance(node, ast.Attribute) and node.attr == "getLogger":
                yield _place(module, node, "getLogger")


def texts_decide(source: Source) -> Iterator[Finding]:
    """Comparisons with a text that was written for people."""
    for module in source.modules:
        for node in module.nodes:
            if isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Is | ast.IsNot):
                for side in node.comparators:
                    for part in getattr(side, "elts", [side]):
                        value = getattr(part, "value", None)
                        if isinstance(value, str) and re.search(r"\w[ =]", value):
                            yield _place(module, part, repr(value))


def _once(rule: dict[str, Any]) -> Callable[[Source], Iterator[Finding]]:
    def matches(value: object) -> bool:
        if "number" in rule:
            return isinstance(value, float) and value == rule["number"]
        pattern = rule.get("pattern") or re.escape(rule["text"])
        return isinstance(value, str) and re.fullmatch(pattern, value) is not None

    def law(source: Source) -> Iterator[Finding]:
        for module in source.modules:
            for node in module.nodes:
                if isinstance(node, ast.Constant) and matches(node.value):
                    yield _place(module, node, repr(node.value))

    return law


def _list(rule: dict[str, Any]) -> Callable[[Source], Iterator[Finding]]:
    def law(source: Source) -> Iterator[Finding]:
        holders = [m for m in source.modules if any(_names(n, rule["names"]) for n in m.nodes)]
        if "home" not in rule and len(holders) < 2:
            return
        for module in holders:
            for node in module.nodes:
                if found := _names(node, rule["names"]):
                    yield _place(module, node, " ".join(found))

    return law


def _names(node: ast.AST, names: list[str]) -> list[str]:
    """Return which of the names one literal lists, in their order; nothing for a single one."""
    if isinstance(node, ast.Dict):
        parts: list[Any] = list(node.keys)
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        parts = node.elts
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "|" in node.value:
        words = set(re.findall(r"[\w-]+", node.value))
        return [name for name in names if name in words] if len(words & set(names)) > 1 else []
    else:
        return []
    held = {getattr(part, "value", None) for part in parts if isinstance(part, ast.Constant)}
    return [name for name in names if name in held] if len(held & set(names)) > 1 else []


def docstrings(source: Source) -> Iterator[Finding]:
    """Public functions and classes without a docstring; overloads and overrides may lack one."""
    classes = {n.name: n for m in source.modules for n in m.nodes if isinstance(n, ast.ClassDef)}

    def documented_above(owner: ast.ClassDef, name: str) -> bool:
        bases = (classes.get(ast.unparse(base).rpartition(".")[2]) for base in owner.bases)
        return any(b and (_documents(b, name) or documented_above(b, name)) for b in bases)

    def walk(body: list[ast.stmt], prefix: str, owner: ast.ClassDef | None) -> Iterator[Any]:
        for node in body:
            if not isinstance(node, _DEFINITIONS) or node.name.startswith("_"):
                continue
            inherits = owner is not None and documented_above(owner, node.name)
            if not (ast.get_docstring(node) or _is_overload(node) or inherits):
                yield node, f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.", node)

    for module in source.modules:
        for node, name in walk(module.tree.body, "", None):
            yield _place(module, node, name)


def _documents(owner: ast.ClassDef, name: str) -> bool:
    return any(
        isinstance(n, _DEFINITIONS) and n.name == name and ast.get_docstring(n) is not None
        for n in owner.body
    )


def shown(source: Source) -> Iterator[Finding]:
    """What an error was given, written into its text by ``repr``.

    It may be anything: an int that Python does not write out, an object whose ``__repr__`` raises,
    megabytes. ``_base.arguments.shown`` writes each.
    """
    for module in source.modules:
        for call in (node for node in module.nodes if isinstance(node, ast.Call)):
            given = {ast.unparse(word.value) for word in call.keywords if word.arg == "given"}
            for value in (part for argument in call.args for part in ast.walk(argument)):
                by_repr = isinstance(value, ast.FormattedValue) and value.conversion == ord("r")
                if by_repr and ast.unparse(value.value) in given:
                    yield _place(module, value, ast.unparse(value.value))


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)


CHECKS: dict[str, Callable[[Source], Iterator[Finding]]] = {
    "layers": layers,
    "layers-typing": layers_typing,
    "os": operating_system,
    "torch-backends": torch_backends,
    "mpskit-variables": _names_of("MPSKIT"),
    "pytorch-variables": _names_of("PYTORCH"),
    "versions": versions,
    "logger": logger,
    "texts-decide": texts_decide,
    "docstrings": docstrings,
    "shown": shown,
    **{f"once.{name}": _once(rule) for name, rule in LAWS["once"].items()},
    **{f"list.{name}": _list(rule) for name, rule in LAWS["list"].items()},
}


def rule_of(law: str) -> dict[str, Any]:
    """Return a law's table in laws.toml."""
    table, _, name = law.partition(".")
    rule: dict[str, Any] = LAWS[table][name] if name else LAWS[table]
    return rule


def findings(law: str, source: Source) -> dict[str, str]:
    """Return what is done outside a law's home, with the (last) place of each."""
    homes = rule_of(law).get("home", [])
    homes = [homes] if isinstance(homes, str) else homes
    return {
        what: where
        for what, where in CHECKS[law](source)
        if not any(f"{what.partition(':')[0]}.".startswith(f"{home}.") for home in homes)
    }


def allowed(law: str) -> dict[str, str]:
    """Return a law's exceptions, each with its reason."""
    exceptions: dict[str, str] = rule_of(law).get("allowed", {})
    return exceptions


def known() -> dict[str, list[str]]:
    """Return the listed violations, by law."""
    listed: dict[str, list[str]] = tomllib.loads(KNOWN.read_text())["violations"]
    return listed


def _shrink(source: Source) -> None:
    """Write known.toml again without what is mended; its first lines, the comment, stay."""
    lines = [KNOWN.read_text(encoding="utf-8").partition("[violations]")[0] + "[violations]"]
    for law, entries in known().items():
        if left := [entry for entry in entries if entry in findings(law, source)]:
            lines += [f'"{law}" = [', *(f"  {json.dumps(entry)}," for entry in left), "]"]
    KNOWN.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    whole = Source()
    if "--shrink" in sys.argv[1:]:
        _shrink(whole)
    for law in CHECKS:
        for what, where in sorted(findings(law, whole).items()):
            if what not in allowed(law):
                print(f"{law}  {where}  {what}")
