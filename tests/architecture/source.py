"""The library's source as the tests of its architecture read it: parsed files, never imported ones."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "mpskit"
ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / PACKAGE


@dataclass(frozen=True)
class Import:
    """One imported module of mpskit, and whether only type checkers import it."""

    target: str
    lineno: int
    typing: bool


@dataclass(frozen=True)
class Module:
    """One parsed file; ``name`` leaves out the package: ``memory.budget``, or ``memory``."""

    name: str
    path: Path

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def shown(self) -> str:
        return self.path.relative_to(SRC).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def for_typing(self) -> frozenset[int]:
        """The ids of the nodes under ``if TYPE_CHECKING:``."""
        blocks = (n for n in self.nodes if isinstance(n, ast.If))
        checked = (n for n in blocks if ast.unparse(n.test).endswith("TYPE_CHECKING"))
        return frozenset(id(n) for block in checked for kept in block.body for n in ast.walk(kept))

    def imported(self) -> Iterator[tuple[str, int, bool]]:
        """Every import, also inside functions: the dotted name, its line, and whether for types."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.shown}:{node.lineno}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield name, node.lineno, id(node) in self.for_typing

    def texts(self) -> Iterator[ast.Constant]:
        """Every string of the code: docstrings and other bare strings are left out."""
        bare = {id(n.value) for n in self.nodes if isinstance(n, ast.Expr)}
        for node in self.nodes:
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in bare
            ):
                yield node


class Source:
    """The package's files, parsed once."""

    def __init__(self, root: Path = SRC) -> None:
        files = sorted(root.rglob("*.py"))
        self.modules = [Module(_name(path.relative_to(root)), path) for path in files]
        self.names = frozenset(module.name for module in self.modules)

    def imports(self, module: Module) -> Iterator[Import]:
        """The modules of mpskit that a file imports; a name of a module counts as the module."""
        for dotted, line, typing in module.imported():
            package, _, rest = dotted.partition(".")
            if package != PACKAGE:
                continue
            while rest and rest not in self.names:
                rest = rest.rpartition(".")[0]
            yield Import(rest, line, typing)


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
