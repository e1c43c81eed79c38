"""The pages of docs/reference that follow from code and data are as these are."""

import importlib.util
import re

import pages
import pytest

import mpskit
from mpskit.cli.main import COMMANDS


@pytest.fixture(scope="module")
def script():
    """The script that writes them."""
    path = pages.ROOT / "scripts" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(script):
    assert script.stale() == [], f"write them: {script.COMMAND}"


def test_a_change_and_a_lost_page_show(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script.sys, "argv", ["reference_pages.py"])
    assert script.main() == 1
    monkeypatch.setattr(script.sys, "argv", ["reference_pages.py", "--write"])
    assert script.main() == 0
    assert script.stale() == []
    (tmp_path / "cli.md").write_text("edited by hand")
    (tmp_path / "api" / "old.md").write_text("of a room that is gone")
    assert script.stale() == ["cli.md", "api/old.md"]


def test_every_public_name_is_on_one_page(script):
    text = "\n".join(t for name, t in script.pages().items() if name.startswith("api/"))
    named = re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE)
    errors = set(importlib.import_module("mpskit.errors").__all__)
    for name in set(mpskit.__all__) - errors - {"__version__"}:
        assert named.count(name) == 1, name


def test_every_command_error_machine_and_issue_is_there(script):
    made = script.pages()
    assert set(re.findall(r"^## mpskit (\w+)$", made["cli.md"], re.MULTILINE)) == {*COMMANDS}
    for name in importlib.import_module("mpskit.errors").__all__:
        assert f"| `{name}` |" in made["exceptions.md"]
    for name in script.machines():
        assert f"| `{name}` |" in made["machines.md"]
    for issue in script.issue_table():
        assert f"### {issue.key}\n" in made["known_issues.md"]
