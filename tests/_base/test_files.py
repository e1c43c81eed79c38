"""Small files that anything may lie in place of."""

import os
import threading
from pathlib import Path

import pytest

from mpskit._base import files
from mpskit._base.files import read_small, write_whole


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    assert write_whole(path, "text \udcff")
    assert read_small(path) == "text \\udcff"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def _fifo(path):
    os.mkfifo(path)


def _folder(path):
    path.mkdir()


def _device(path):
    path.symlink_to("/dev/zero")


def _endless(path):
    path.write_bytes(b"x" * (1 << 16) + b"x")


def _no_text(path):
    path.write_bytes(b"\xff")


@pytest.mark.parametrize("make", [_fifo, _folder, _device, _endless, _no_text])
def test_what_is_no_small_file_is_not_read(tmp_path, make):
    make(tmp_path / "file")
    assert read_small(tmp_path / "file") is None


def test_a_file_of_64_kib_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (1 << 16))
    assert len(read_small(tmp_path / "file")) == 1 << 16


@pytest.mark.parametrize("path", ["/tmp/a\0b", "/tmp/" + "x" * 5000, "/proc/none/such"])
def test_a_path_that_cannot_be_is_no_error(path):
    assert read_small(Path(path)) is None
    assert not write_whole(Path(path) / "file", "x")


def test_a_link_is_replaced_and_its_target_left(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    assert write_whole(tmp_path / "file", "ours")
    assert ((tmp_path / "target").read_text(), read_small(tmp_path / "file")) == ("mine", "ours")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fdopen", full)
    assert not write_whole(tmp_path / "file", "x")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_at_its_place_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    assert not write_whole(tmp_path / "file", "x")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_many_writers_leave_a_whole_file(tmp_path):
    path = tmp_path / "file"
    threads = [threading.Thread(target=write_whole, args=(path, "x" * 1000)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_small(path) == "x" * 1000
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
