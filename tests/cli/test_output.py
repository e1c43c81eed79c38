"""Text on a terminal: wrapped to its columns, never broken within a word; as it is elsewhere."""

import pytest

from mpskit.cli import output
from mpskit.cli.main import COMMANDS, main
from mpskit.cli.output import check_folder, columns, print_rows, print_wrapped, wrapped
from mpskit.errors import ArgumentError


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")  # argparse's
    monkeypatch.setattr(output, "columns", lambda _: 60)


def test_a_pipe_gets_whole_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_wrapped("word " * 40)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert columns(None) is None


def test_what_is_wrapped_is_indented_and_no_word_is_lost():
    text = (
        "  note: " + "a few words " * 12 + "/a/path/that/is/longer/than/the/whole/terminal/is.png"
    )
    lines = wrapped(text, width=40).splitlines()
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(len(line) <= 40 for line in lines[:-1])
    assert " ".join(lines).split() == text.split()


def test_lines_that_fit_stay_as_they_are():
    text = "one\n  total     1.00 GiB\n\n  two"
    assert wrapped(text, width=40) == text


@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["device", "--why"],
        ["budget", "--machine", "m1-16gb"],
        ["budget", "--machine", "m0-16gb"],
        ["simulate", "--list"],
        ["estimate", "--list"],
        ["estimate", "Qwen/Qwen2.5-0.5B", "--machine", "m1-8gb"],
        *([name, "--help"] for name in COMMANDS),
    ],
    ids=" ".join,
)
def test_every_command_fits_a_terminal_of_60_columns(words, capsys, terminal):
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 0
    out, err = capsys.readouterr()
    wide = [line for line in (out + err).splitlines() if len(line) > 60]
    # A line to copy is not broken.
    assert not [line for line in wide if not line.startswith("       fix: ")]


def test_a_table_of_text(capsys):
    print_rows(("a", "b"), [("one", "1"), ("three", "22")])
    assert capsys.readouterr().out == "one    1\nthree  22\n"


@pytest.mark.parametrize("width", [24, 60])
def test_columns_of_one_value_leave_a_table_that_is_too_wide(width, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(output, "columns", lambda stream: width)
    rows = [("m1-16gb", "9.87 GiB", "fits", ""), ("m2-24gb", "14.80 GiB", "fits", "")]
    print_rows(("machine", "usable", "verdict", "note"), rows)
    text = capsys.readouterr().out
    assert ("each row: verdict fits\n" in text) == (width == 24)
    assert ("verdict  note" in text) == (width == 60)
    assert max(map(len, text.splitlines())) <= width


def test_a_table_of_one_row_keeps_its_columns(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(output, "columns", lambda stream: 10)
    print_rows(("one", "two"), [("first", "second")])
    assert capsys.readouterr().out.split() == ["one", "two", "first", "second"]


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    check_folder(str(tmp_path / "new.png"))
    for path in (tmp_path, tmp_path / "none" / "new.png"):
        with pytest.raises(ArgumentError, match=path.name):
            check_folder(str(path))
