"""Pictures: what is missing, and what cannot be written."""

import sys
from pathlib import Path

import pytest

from mpskit import ArgumentError, MissingExtraError
from mpskit._base.figures import new_figure, save_figure, unwritable


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mpskit\[plot\]'"):
        new_figure(2, 1)


def test_a_figure_is_written(tmp_path):
    figure, axes = new_figure(2, 1)
    axes.plot([1, 2])
    assert save_figure(figure, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["none/x.png", "x.nothing", "."])
def test_what_cannot_be_written(tmp_path, name):
    figure, _ = new_figure(2, 1)
    with pytest.raises(ArgumentError, match="cannot be written"):
        save_figure(figure, tmp_path / name)


def test_a_name_without_suffix_is_a_png(tmp_path):
    figure, _ = new_figure(2, 1)
    assert save_figure(figure, tmp_path / "times") == tmp_path / "times.png"
    assert (tmp_path / "times.png").exists()


def test_the_reason_is_short():
    error = unwritable(Path("/secret/x.png"), PermissionError(13, "Permission denied"))
    assert str(error) == "'x.png' cannot be written: Permission denied"
