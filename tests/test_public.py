"""The package's face: what it exports, and what importing it costs."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mpskit


def _in_a_fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=280
    )
    return done.stdout.strip()


def test_importing_imports_no_heavy_package():
    code = "import mpskit, sys; print(*{'torch', 'pydantic', 'psutil', 'numpy'} & set(sys.modules))"
    assert _in_a_fresh_python(code) == ""


def test_importing_changes_no_variable_and_sets_up_no_logging():
    code = (
        "import os, logging; before = dict(os.environ); import mpskit; "
        "print(before == dict(os.environ), logging.getLogger().handlers, "
        "logging.getLogger('mpskit').level)"
    )
    assert _in_a_fresh_python(code) == "True [] 0"


def test_the_plugin_imports_no_torch():
    code = "import mpskit.testing.plugin, sys; print(*{'torch', 'pydantic'} & set(sys.modules))"
    assert _in_a_fresh_python(code) == ""


def test_all_and_dir_agree():
    assert sorted(dir(mpskit)) == sorted(mpskit.__all__)
    assert len(set(mpskit.__all__)) == len(mpskit.__all__)


@pytest.mark.parametrize("name", mpskit.__all__)
def test_every_public_name_resolves(name):
    value = getattr(mpskit, name)
    if name != "__version__":
        home = importlib.import_module(mpskit._PUBLIC[name])
        assert value is getattr(home, name)
        assert value.__doc__


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(mpskit.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {a.name: node.module for node in imports for a in node.names if a.name != "Any"}
    assert seen == mpskit._PUBLIC
    assert set(mpskit.__all__) == {*mpskit._PUBLIC, "__version__"}


def test_no_public_name_hides_a_module():
    hidden = [name for name in mpskit.__all__ if importlib.util.find_spec(f"mpskit.{name}")]
    assert hidden == []


def test_the_version_is_the_package_s():
    assert mpskit.__version__ == version("mpskit")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'get_optimal_devise'"):
        mpskit.get_optimal_devise


def test_names_and_signatures_are_frozen():
    """``python tests/public_api.py --write`` after a change that the changelog names."""
    from tests.public_api import FILE, lines

    assert list(lines()) == FILE.read_text(encoding="utf-8").splitlines()
