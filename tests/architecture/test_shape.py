"""Sizes, docstrings and documented names: what anyone who opens the source or imports it relies on."""

import ast
import importlib
import pkgutil
import re

import laws
import pytest
from source import ROOT, SRC, Source

import mpskit

SIZES = laws.LAWS["sizes"]

# What docs/ and README tell people to import; each has __all__, and its names are public.
DOCUMENTED = (
    "mpskit",
    "mpskit.allocator",
    "mpskit.device",
    "mpskit.errors",
    "mpskit.estimate",
    "mpskit.host",
    "mpskit.host.chips",
    "mpskit.memory",
    "mpskit.power",
    "mpskit.settings",
    "mpskit.simulation",
    "mpskit.testing",
)


@pytest.fixture(scope="module")
def source():
    return Source()


def test_no_file_is_too_long(source):
    long = {m.shown: len(m.text.splitlines()) for m in source.modules}
    assert {name: size for name, size in long.items() if size > SIZES["lines"]} == {}


def test_few_modules_stand_outside_a_room():
    loose = {path.stem for path in SRC.glob("*.py")} - set(SIZES["loose"])
    assert len(loose) <= SIZES["loose-more"], f"put into a room: {sorted(loose)}"


def test_the_simulation_is_few_files():
    assert len(list((SRC / "simulation").glob("*.py"))) <= SIZES["simulation-files"]


def test_every_module_says_what_it_holds(source):
    assert [m.shown for m in source.modules if not ast.get_docstring(m.tree)] == []


@pytest.mark.parametrize("path", DOCUMENTED)
def test_every_documented_path_works(path):
    module = importlib.import_module(path)
    assert module.__doc__
    assert module.__all__
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []


def _pages():
    return (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    dotted = re.findall(r"(?<![\w./-])mpskit(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8"))
    missing = [name for name in sorted(set(dotted)) if not _resolves(name)]
    assert missing == []


def _resolves(name):
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_room_is_a_package_with_a_docstring():
    rooms = [m.name for m in pkgutil.iter_modules(mpskit.__path__, "mpskit.") if m.ispkg]
    assert all(importlib.import_module(room).__doc__ for room in rooms)
