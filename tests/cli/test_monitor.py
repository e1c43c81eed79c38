"""``mpskit monitor``: the child's exit code, its tree, its end, and the files."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mpskit.cli.main import main
from mpskit.system.command import tree_footprint

PYTHON = sys.executable
# Only a hang takes so long: no test measures how fast a busy machine is.
LONG = 120.0
MIB = 2**20
MONITOR = [PYTHON, "-m", "mpskit", "monitor", "--no-plot", "--interval", "0.05", "--"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def monitor(*words):
    return main(["monitor", "--interval", "0.05", *words])


@pytest.mark.parametrize(
    ("code", "passed_on"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_exit_code_is_passed_on(code, passed_on):
    assert monitor("--no-plot", "--", PYTHON, "-c", code) == passed_on


def test_the_whole_tree_is_measured_and_written(tmp_path, capfd, monkeypatch):
    """The grandchild ends once it has been measured, however long a busy machine takes to."""

    def measure(pid):
        found = tree_footprint(pid)
        if found is not None and found > 150 * MIB:
            (tmp_path / "measured").touch()
        return found

    monkeypatch.setattr("mpskit.cli.monitor.tree_footprint", measure)
    grandchild = (
        f"import os, time; held, end = bytearray({150 * MIB}), time.monotonic() + {LONG}\n"
        "while not os.path.exists('measured') and time.monotonic() < end: time.sleep(0.02)"
    )
    child = f"import subprocess; subprocess.run([{PYTHON!r}, '-c', {grandchild!r}])"
    words = ["--json", "--csv", "m.csv", "--plot", "m.png", "--", PYTHON, "-c", child]
    assert monitor(*words) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["schema"] == 1
    assert summary["peak_footprint_bytes"] > 150 * MIB
    assert summary["exit_code"] == 0
    assert (summary["plot"], summary["csv"]) == ("m.png", "m.csv")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "m.csv").read_text().splitlines()) == summary["samples"] + 1


def test_for_a_person_there_is_one_line_and_a_plot(tmp_path, capfd):
    assert monitor(PYTHON, "-c", "print('from the child')") == 0
    out, err = capfd.readouterr()
    assert out == "from the child\n"
    assert "peak memory" in err
    assert "wrote mpskit-monitor.png" in err
    assert (tmp_path / "mpskit-monitor.png").exists()


@pytest.mark.parametrize(
    "options", [["--plot", "gone/m.png"], ["--no-plot", "--csv", "gone/m.csv"]]
)
def test_a_folder_that_goes_meanwhile_is_told_and_the_exit_code_stays(
    options, monkeypatch, tmp_path, capfd
):
    monkeypatch.setattr("mpskit.cli.monitor.tree_footprint", lambda _: MIB)
    (tmp_path / "gone").mkdir()
    code = "import os; os.rmdir('gone'); raise SystemExit(5)"
    assert monitor(*options, "--", PYTHON, "-c", code) == 5
    assert "cannot be written" in capfd.readouterr().err


def test_without_matplotlib_the_exit_code_stays(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("mpskit.cli.monitor.tree_footprint", lambda _: MIB)
    assert monitor(PYTHON, "-c", "raise SystemExit(5)") == 5
    assert "mpskit[plot]" in capfd.readouterr().err


def test_a_program_that_is_absent_or_cannot_run_has_a_shells_code(tmp_path, capfd):
    assert monitor("--", "no-such-program") == 127
    (tmp_path / "text").write_text("no program")
    assert monitor("--", "./text") == 126
    assert "no-such-program" in capfd.readouterr().err


@pytest.mark.parametrize("words", [[], ["--"], ["--interval", "0", "--", "true"]])
def test_bad_words_are_exit_2(words, capsys):
    assert main(["monitor", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# Signals: nothing is left behind, nothing else is hit

STUBBORN = (
    "import signal, sys, time\n"
    "def caught(number, frame): print('caught', number, flush=True)\n"
    "signal.signal(signal.SIGINT, caught)\n"
    "signal.signal(signal.SIGTERM, {term})\n"
    "print('ready', flush=True)\n"
    "end = time.monotonic() + 60\n"
    "while time.monotonic() < end: time.sleep(0.02)\n"
)
POLITE = (
    "import time\n"
    "try: print('ready', flush=True); time.sleep(60)\n"
    "except KeyboardInterrupt: print('saved', flush=True); raise SystemExit(3)\n"
)


@contextlib.contextmanager
def watching(code):
    """A monitor of its own with ``code`` under it, once the child is ready."""
    process = subprocess.Popen(
        [*MONITOR, PYTHON, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        (child,) = psutil.Process(process.pid).children()
        yield process, child
        assert not child.is_running()
    finally:
        process.kill()
        process.communicate()


def test_a_child_that_ends_itself_on_ctrl_c_may_save_first():
    with watching(POLITE) as (process, _):
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=LONG)
        assert (out, process.returncode) == ("saved\n", 3)


def test_sigterm_is_passed_on():
    with watching(POLITE) as (process, _):
        process.terminate()
        process.communicate(timeout=LONG)
        assert process.returncode == 128 + signal.SIGTERM


def test_a_second_ctrl_c_asks_and_a_third_kills():
    with watching(STUBBORN.format(term="caught")) as (process, child):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"caught {int(signal.SIGINT)}\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"caught {int(signal.SIGTERM)}\n"
        assert child.is_running()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONG)
        assert process.returncode == 128 + signal.SIGKILL


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monitor("--no-plot", "--", PYTHON, "-c", "pass")
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_a_bystander_is_not_hit():
    bystander = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(60)"])
    try:
        with watching(STUBBORN.format(term="signal.SIG_IGN")) as (process, _):
            for _ in range(3):
                process.send_signal(signal.SIGINT)
                time.sleep(0.1)
            process.communicate(timeout=LONG)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_command_that_was_killed_is_told_of(capfd):
    code = "import os, signal, time; time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)"
    assert monitor("--no-plot", "--", PYTHON, "-c", code) == 137
    err = capfd.readouterr().err
    assert "killed (SIGKILL)" in err
    assert "RAM were available" in err
    monitor("--no-plot", "--", PYTHON, "-c", "raise SystemExit(1)")
    assert "SIGKILL" not in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_a_file_that_cannot_be_written_is_told_before_the_command_runs(option, tmp_path, capsys):
    ran = tmp_path / "ran"
    words = [option, str(tmp_path / "none" / "file")]
    assert monitor(*words, "--", PYTHON, "-c", f"open({str(ran)!r}, 'w')") == 2
    assert "cannot be written: no folder" in capsys.readouterr().err
    assert not ran.exists()


def test_a_command_that_was_never_seen_has_no_peak_and_no_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("mpskit.cli.monitor.tree_footprint", lambda _: 0)
    assert monitor("--", PYTHON, "-c", "") == 0
    assert "peak memory unknown" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(("words", "shown"), [([], False), (["--live"], True)])
def test_the_live_line_is_a_wish(words, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    assert monitor("--no-plot", *words, "--", PYTHON, "-c", "") == 0
    err = capsys.readouterr().err
    assert ("\x1b[K" in err) is shown
    assert all(len(part) <= 39 for part in err.split("\r\x1b[K")[1:-1])
