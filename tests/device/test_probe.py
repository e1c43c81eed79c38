"""The probe really runs a child process; the cache really is a file."""

import json
import sys
import threading

import pytest

from mpskit.device import probe
from mpskit.host import Host, Readings, find_machine
from mpskit.settings import Settings

HOST = Host.from_readings(find_machine("github-macos-15-vm").readings())


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "cache")


@pytest.fixture
def verdicts(monkeypatch):
    """Count the probes; each returns the next number as its failure."""
    seen = []

    def probed():
        seen.append(len(seen))
        return f"failure {len(seen)}"

    monkeypatch.setattr(probe, "probe_mps", probed)
    return seen


def _child(monkeypatch, code):
    monkeypatch.setattr(probe, "_WORK", code)


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("print('mpskit-probe-ok')", None),
        ("raise RuntimeError('MPS backend out of memory')", "MPS backend out of memory"),
        ("import os; os.abort()", "died of signal 6"),
        ("raise SystemExit(3)", "ended with code 3"),
        ("pass", "ended with code 0"),
    ],
)
def test_what_a_child_can_answer(monkeypatch, code, answer):
    _child(monkeypatch, code)
    got = probe.probe_mps()
    assert got is None if answer is None else answer in got


def test_a_child_that_hangs_is_killed(monkeypatch):
    _child(monkeypatch, "import time; time.sleep(60)")
    assert probe.probe_mps(0.5) == "no answer within 0.5 s"


def test_a_python_that_is_gone(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "did not start" in probe.probe_mps()


def test_the_real_work_fails_where_there_is_no_mps():
    assert "mps" in probe.probe_mps().lower()


def test_the_verdict_is_remembered_per_machine_and_torch(verdicts, settings):
    ask = probe.remembered_probe
    assert ask(HOST, "2.13.0", settings) == "failure 1"
    assert ask(HOST, "2.13.0", settings) == "failure 1"
    assert ask(HOST, "2.14.0", settings) == "failure 2"
    other = Host.from_readings(Readings(system="Darwin", machine="arm64"))
    assert ask(other, "2.13.0", settings) == "failure 3"
    assert ask(HOST, "2.13.0", settings, refresh=True) == "failure 4"
    assert ask(HOST, "2.13.0", settings) == "failure 4"


def test_no_cache_touches_no_folder(verdicts, tmp_path):
    settings = Settings(no_cache=True, cache_dir=tmp_path / "cache")
    probe.remembered_probe(HOST, "2.13.0", settings)
    probe.remembered_probe(HOST, "2.13.0", settings)
    assert len(verdicts) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b'{"failure": 3}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_corrupt_cache_is_as_good_as_none(verdicts, settings, garbage):
    probe.remembered_probe(HOST, "2.13.0", settings)
    (file,) = settings.cache_dir.iterdir()
    file.write_bytes(garbage)
    assert probe.remembered_probe(HOST, "2.13.0", settings) == "failure 2"
    assert json.loads(file.read_text()) == {"failure": "failure 2"}


def test_a_folder_that_cannot_be_made_is_no_error(verdicts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings = Settings(cache_dir=tmp_path / "file" / "cache")
    assert probe.remembered_probe(HOST, "2.13.0", settings) == "failure 1"
    assert probe.remembered_probe(HOST, "2.13.0", settings) == "failure 2"


def test_a_user_without_a_home_is_no_error(verdicts, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")
    monkeypatch.setattr(probe.Path, "expanduser", _homeless)
    assert probe.remembered_probe(HOST, "2.13.0", Settings()) == "failure 1"


def _homeless(path):
    raise RuntimeError("Could not determine home directory.")


def test_many_writers_leave_a_whole_file(settings):
    path = settings.cache_dir / "mps-probe-x.json"
    threads = [threading.Thread(target=probe._write, args=(path, "x" * 1000)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert probe._read(path) == {"failure": "x" * 1000}
    assert [file.name for file in settings.cache_dir.iterdir()] == [path.name]


def test_the_folder_is_the_user_s(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert probe.cache_folder(Settings()) == tmp_path / "mpskit"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert probe.cache_folder(Settings()).parts[-3:] == ("Library", "Caches", "mpskit")
