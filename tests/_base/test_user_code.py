"""Which code is the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import mpskit
from mpskit._base.user_code import is_own, own_place, shown_place


@pytest.mark.parametrize(
    ("file", "own"),
    [
        (__file__, True),
        ("train.py", True),
        (json.__file__, False),
        (torch.__file__, False),
        (mpskit.__file__, False),
        ("/home/me/.venv/lib/python3.11/site-packages/timm/models.py", False),
        ("/usr/lib/python3/dist-packages/numpy/core.py", False),
        ("<string>", False),
        ("<frozen importlib>", False),
    ],
)
def test_whose_code_it_is(file, own):
    assert is_own(file) is own


def test_the_innermost_frame_of_ones_own_is_named():
    seen = []

    class Hook(dict):
        def __missing__(self, key):
            seen.append(own_place(sys._getframe()))
            return "x"

    "{a}".format_map(Hook())
    assert seen[0][0] == __file__
    assert own_place(None) is None


def test_a_file_below_the_current_folder_is_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_place(str(tmp_path / "train.py"), 7) == "train.py:7"
    assert shown_place("/elsewhere/train.py", 7) == str(Path("/elsewhere/train.py")) + ":7"
    monkeypatch.setattr(Path, "cwd", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    assert shown_place("/elsewhere/train.py", 7).endswith("train.py:7")
