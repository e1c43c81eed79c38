"""What is written in a rehearsal is found again inside of it, and nowhere after it."""

# ruff: noqa: PTH103, PTH105, PTH107, PTH208

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import mpskit

pytestmark = pytest.mark.needs_torch("simulation")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("file")
    return tmp_path


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def overwrite(folder):
    (folder / "old.txt").write_text("new")
    assert (folder / "old.txt").read_text() == "new"


def append(folder):
    with (folder / "old.txt").open("a") as file:
        file.write("er")
    assert Path(folder / "old.txt").read_text() == "older"


def make_folders(folder):
    os.makedirs(folder / "a" / "b", exist_ok=True)
    os.makedirs(folder / "a" / "b", exist_ok=True)
    (folder / "a" / "b" / "c.json").write_text(json.dumps([1]))
    assert json.loads((folder / "a" / "b" / "c.json").read_text()) == [1]
    assert os.listdir(folder / "a") == ["b"]
    assert (folder / "a").is_dir()


def remove(folder):
    os.remove(folder / "old.txt")
    assert not (folder / "old.txt").exists()
    with pytest.raises(FileNotFoundError):
        os.remove(folder / "old.txt")
    shutil.rmtree(folder / "kept")
    assert not (folder / "kept" / "file").exists()


def move(folder):
    os.replace(folder / "old.txt", folder / "moved.txt")
    assert (folder / "moved.txt").read_text() == "old"
    assert not (folder / "old.txt").exists()


def save(folder):
    weight = torch.empty(1 << 28, device="mps")  # 1 GiB
    torch.save({"weight": weight, "step": 3}, folder / "model.pt")
    loaded = torch.load(folder / "model.pt", map_location="cpu")
    assert (loaded["weight"].shape, loaded["step"]) == (weight.shape, 3)


def save_safely(folder):
    torch_files = pytest.importorskip("safetensors.torch")
    torch_files.save_file({"weight": torch.empty(1 << 28)}, str(folder / "model.safetensors"))
    assert (folder / "model.safetensors").stat().st_size > 1 << 30


@pytest.mark.parametrize(
    "change", [overwrite, append, make_folders, remove, move, save, save_safely]
)
def test_the_files_are_as_they_were(change, folder):
    before = tree(folder)
    with mpskit.rehearse() as run:
        torch.ones(1, device="mps")
        change(folder)
    assert tree(folder) == before
    if change is not remove:
        assert {one.kind for one in run.report.of("note")} >= {"write"}


def test_writing_is_let_through_where_asked(folder):
    with mpskit.rehearse(write=True):
        overwrite(folder)
    assert (folder / "old.txt").read_text() == "new"


def test_the_folder_is_gone_after(folder, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with mpskit.rehearse():
        overwrite(folder / "kept" / "..")
    assert not list(folder.glob("mpskit-rehearsal-*"))
