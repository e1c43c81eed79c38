"""A file of the user's that the command line runs: its prints, its errors and its exits."""

import json
import sys

import pytest

from mpskit import ArgumentError
from mpskit.cli.main import main
from mpskit.cli.user_file import run_file, users_code

STEP = """
print("loading")
def make_step(device):
    print("making", device)
    return lambda: print("step")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def written(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return str(path)

    return written


@pytest.mark.parametrize("name", ["mine.py", "we ird'$n.py", "\u00e9:x.py", "[red].py"])
def test_what_it_prints_goes_to_stderr(file, name, capsys):
    path = file(STEP, name)
    assert main(["compare", f"{path}:make_step", "--seconds", "0.001", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["winner"] == "cpu"
    assert {"loading", "making cpu", "step"} <= set(told.err.splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make_step(d)\n    pass", "fails: SyntaxError: expected ':'"),
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "fails: ModuleNotFoundError: No module named"),
        ("open('/nowhere/data.csv')", "fails: FileNotFoundError"),
        ("import sys; sys.exit(0)", r"ended the program \(sys.exit\(0\)\): put what it does"),
        ("make_step = 3; x = 4", "has no 'nothing'; it has make_step, x"),
    ],
)
def test_a_file_that_cannot_be_run(file, text, message):
    with pytest.raises(ArgumentError, match=message):
        run_file(file(text), "nothing")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('in the\\nmiddle')", "fails: ValueError: in the middle"),
        ("import sys; sys.exit(0)", "ended the program"),
    ],
)
@pytest.mark.parametrize("where", ["step", "make"])
def test_a_step_that_fails_ends_with_2_and_its_own_lines(file, body, message, where, capsys):
    inner = (
        f"    def step():\n        {body}\n    return step" if where == "step" else f"    {body}"
    )
    path = file(f"def make_step(device):\n{inner}")
    assert main(["compare", f"{path}:make_step"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "mpskit/" not in told.replace("mpskit compare", "")


def test_an_interrupt_is_no_failure_of_the_file():
    with pytest.raises(KeyboardInterrupt), users_code("mine.py"):
        raise KeyboardInterrupt
