"""The probe really runs a child process; the cache really is a file."""

import json
import re
import sys
from pathlib import Path

import pytest

from mpskit.device import probe
from mpskit.host import Host, Readings, find_machine
from mpskit.settings import Settings

# No test waits for it: the child answers or is known to hang.
LONG = 600.0
HOST = Host.from_readings(find_machine("github-macos-15-vm").readings())


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "cache")


@pytest.fixture
def verdicts(monkeypatch):
    """Count the probes; each returns the next number as its failure."""
    seen = []

    def probed(_):
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
    got = probe.probe_mps(LONG)
    assert got is None if answer is None else answer in got


def test_a_child_that_hangs_has_no_answer(monkeypatch):
    _child(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(TimeoutError, match=r"longer than 0\.5 s"):
        probe.probe_mps(0.5)


@pytest.mark.parametrize("python", ["/no/such/python", "", None])
def test_a_python_that_is_gone(monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    assert re.search("did not start|sys.executable is empty", probe.probe_mps())


def test_a_torch_of_the_current_folder_is_not_run(monkeypatch, tmp_path):
    (tmp_path / "stray.py").write_text("")
    monkeypatch.chdir(tmp_path)
    _child(monkeypatch, "import stray")
    assert "No module named 'stray'" in probe.probe_mps(LONG)


@pytest.mark.parametrize(("stream", "code"), [("stdout", 0), ("stderr", 1)])
def test_bytes_that_are_no_text(monkeypatch, stream, code):
    write = f"import sys; sys.{stream}.buffer.write(b'\\xff\\xfe bad'); raise SystemExit({code})"
    _child(monkeypatch, write)
    assert "bad" in probe.probe_mps(LONG) or "ended with code 0" in probe.probe_mps(LONG)


def test_the_real_work_fails_where_there_is_no_mps():
    assert "mps" in probe.probe_mps(LONG).lower()


@pytest.fixture
def asked(monkeypatch):
    """Let every try run out of time; return the limits it was given."""
    limits = []

    def slow(seconds):
        limits.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(probe, "probe_mps", slow)
    return limits


def test_a_time_out_is_tried_again_for_longer_and_never_called_a_failure(asked, settings):
    for _ in range(5):
        answer = probe.remembered_probe(HOST, "2.13.0", settings)
        assert not answer.known
    assert asked == [20, 60, 180]
    assert answer == ("no answer within 180 s", 180)
    probe.remembered_probe(HOST, "2.13.0", settings, refresh=True)
    assert asked[3:] == [180]


def test_an_answer_after_a_time_out_stands(asked, settings, monkeypatch):
    probe.remembered_probe(HOST, "2.13.0", settings)
    monkeypatch.setattr(probe, "probe_mps", lambda _: None)
    assert probe.remembered_probe(HOST, "2.13.0", settings) == (None, 0)
    monkeypatch.setattr(probe, "probe_mps", lambda _: "asked again")
    assert probe.remembered_probe(HOST, "2.13.0", settings) == (None, 0)


def test_without_a_cache_a_time_out_is_forgotten(asked):
    for _ in range(2):
        probe.remembered_probe(HOST, "2.13.0", Settings(no_cache=True))
    assert asked == [20, 20]


def _failure(*arguments, **options):
    return probe.remembered_probe(*arguments, **options).failure


def test_the_verdict_is_remembered_per_machine_and_torch(verdicts, settings):
    ask = _failure
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
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b'{"failure": 3}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b'{"failure": "x", "waited": -1}',
        b'{"failure": "x", "waited": "nan"}',
        b'{"failure": "x", "waited": 9' + b"9" * 400 + b"}",
        b"9" * 5000,
    ],
)
def test_a_corrupt_cache_is_as_good_as_none(verdicts, settings, garbage):
    _failure(HOST, "2.13.0", settings)
    (file,) = settings.cache_dir.iterdir()
    file.write_bytes(garbage)
    assert _failure(HOST, "2.13.0", settings) == "failure 2"
    assert json.loads(file.read_text()) == {"failure": "failure 2", "waited": 0}


@pytest.mark.parametrize(
    ("kept", "answer"),
    [
        ({"failure": None}, (None, 0)),
        ({"failure": "no Metal"}, ("no Metal", 0)),
        ({"failure": None, "waited": 180}, (None, 180)),
        ({"failure": None, "waited": 181}, ("failure 2", 0)),
    ],
)
def test_what_an_earlier_process_kept(verdicts, settings, kept, answer):
    _failure(HOST, "2.13.0", settings)
    (file,) = settings.cache_dir.iterdir()
    file.write_text(json.dumps(kept))
    assert probe.remembered_probe(HOST, "2.13.0", settings) == answer


def test_a_folder_that_cannot_be_made_is_no_error(verdicts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings = Settings(cache_dir=tmp_path / "file" / "cache")
    assert _failure(HOST, "2.13.0", settings) == "failure 1"
    assert _failure(HOST, "2.13.0", settings) == "failure 2"


def test_a_user_without_a_home_is_no_error(verdicts, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")
    monkeypatch.setattr(probe.Path, "expanduser", _homeless)
    assert _failure(HOST, "2.13.0", Settings()) == "failure 1"


def _homeless(path):
    raise RuntimeError("Could not determine home directory.")


def test_the_folder_is_the_user_s(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert probe.cache_folder(Settings()) == tmp_path / "mpskit"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert probe.cache_folder(Settings()).parts[-3:] == ("Library", "Caches", "mpskit")


@pytest.mark.parametrize(
    ("local", "folder"), [("/local", "/local/mpskit"), (None, "~/AppData/Local/mpskit")]
)
def test_the_folder_on_windows(monkeypatch, local, folder):
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCALAPPDATA", local)
    monkeypatch.setattr(sys, "platform", "win32")
    assert probe.cache_folder(Settings()) == Path(folder).expanduser()


def test_every_kept_verdict_is_told_and_cleared(verdicts, settings, monkeypatch):
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(settings.cache_dir))
    assert (probe.kept_probes(), probe.clear_probes()) == ([], 0)
    for torch in ("2.13.0", "2.14.0"):
        probe.remembered_probe(HOST, torch, settings)
    (settings.cache_dir / "another.json").write_text("{}")
    assert sorted(found.failure for found in probe.kept_probes()) == ["failure 1", "failure 2"]
    assert probe.clear_probes() == 2
    assert [file.name for file in settings.cache_dir.iterdir()] == ["another.json"]


def test_without_a_cache_nothing_is_kept(verdicts, settings, monkeypatch):
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(settings.cache_dir))
    probe.remembered_probe(HOST, "2.13.0", settings)
    monkeypatch.setenv("MPSKIT_NO_CACHE", "1")
    assert (probe.kept_probes(), probe.clear_probes()) == ([], 0)
    assert len(list(settings.cache_dir.iterdir())) == 1


def test_without_a_home_nothing_is_kept(monkeypatch):
    for name in ("MPSKIT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(probe.Path, "expanduser", _homeless)
    assert (probe.kept_probes(), probe.clear_probes()) == ([], 0)
