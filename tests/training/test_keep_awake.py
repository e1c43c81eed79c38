"""keep_awake with stand-ins for the systems' own programs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from interrupting import interrupted_at_each_line
from mpskit import keep_awake
from mpskit.errors import ArgumentTypeError, PowerWarning

# Only a hang takes so long: no test measures how fast a busy machine is.
LONG = 120.0
WAITER = "while kill -0 $pid 2>/dev/null; do sleep 0.2; done"
STAND_INS = {
    "caffeinate": f'#!/bin/sh\npid="$3"\n{WAITER}\n',
    # Drops the options and runs the command, as the real one does once it has the lock.
    "systemd-inhibit": '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with /bin and the stand-ins that a test asks for."""

    def install(*names, text=None):
        for name in names:
            path = tmp_path / name
            path.write_text(text or STAND_INS[name])
            path.chmod(0o755)
        for name in ("sh", "sleep"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(f"/bin/{name}")
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    return install


def arguments_of(pid):
    """Wait for the program to have taken the place of the fork."""
    end = time.monotonic() + LONG
    while not (found := psutil.Process(pid).cmdline()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def gone(pid, within=LONG):
    end = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("name", ["caffeinate", "systemd-inhibit"])
def test_kept_awake_while_the_body_runs(tools, name):
    tools(name)
    with keep_awake() as awake:
        assert (awake.how, awake.active) == (name, True)
        assert name in awake.note
        assert arguments_of(awake.pid)[-1] == str(os.getpid())
        children = [child.pid for child in psutil.Process(awake.pid).children(recursive=True)]
    assert not awake.active
    assert all(gone(pid) for pid in [awake.pid, *children])


def test_macs_program_is_given_what_it_needs(tools):
    tools("caffeinate", "systemd-inhibit")
    with keep_awake() as awake:
        assert arguments_of(awake.pid)[-3:] == ["-i", "-w", str(os.getpid())]


def test_nothing_to_keep_it_awake_with(tools, caplog):
    tools()
    caplog.set_level(logging.INFO, "mpskit")
    with keep_awake() as awake:
        assert (awake.how, awake.active, awake.pid) == ("none", False, None)
        assert "neither caffeinate nor systemd-inhibit" in awake.note
    assert "not kept awake" in caplog.text


def test_a_program_that_refuses_is_no_error(tools):
    tools("systemd-inhibit", text="#!/bin/sh\nexit 1\n")
    with keep_awake() as awake:
        assert (awake.how, awake.active) == ("none", False)


def test_a_program_that_is_broken_is_worth_a_warning(tools):
    tools("caffeinate", text="#!/nowhere/at/all\n")
    with pytest.warns(PowerWarning, match="could not be started") as caught, keep_awake() as awake:
        assert (awake.how, awake.active) == ("none", False)
    assert caught[0].filename == __file__


def test_a_program_that_dies_meanwhile(tools):
    tools("caffeinate", text="#!/bin/sh\nexit 0\n")
    with keep_awake() as awake:
        assert gone(awake.pid)
        assert not awake.active


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_body_that_fails_ends_it_and_its_error_comes_out(tools, error):
    tools("caffeinate")
    with pytest.raises(error, match="body"), keep_awake() as awake:
        raise error("body")
    assert gone(awake.pid)


@pytest.mark.parametrize("name", ["caffeinate", "systemd-inhibit"])
def test_an_interrupt_at_any_line_leaves_no_helper(tools, name):
    tools(name)

    def work():
        with keep_awake():
            pass

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    lines = list(interrupted_at_each_line(work))
    assert len(lines) > 20
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert all(gone(child.pid) for child in left)


def test_a_program_that_says_bytes_that_are_no_text_is_stopped(tools):
    tools("systemd-inhibit", text="#!/bin/sh\nprintf '\\377\\n'\nsleep 600\n")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with keep_awake() as awake:
        assert (awake.how, awake.active) == ("none", False)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert all(gone(child.pid) for child in left)


def test_as_a_decorator_and_nested(tools):
    tools("caffeinate")

    @keep_awake("training")
    def train():
        with keep_awake() as inner:
            assert inner.active
            inner.stop()
            inner.stop()
            assert not inner.active
        return "done"

    assert train() == train() == "done"


def test_the_reason_is_a_text():
    with pytest.raises(ArgumentTypeError), keep_awake(3):
        pass


@pytest.mark.parametrize("name", ["caffeinate", "systemd-inhibit"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, None], ids=["killed", "os._exit"])
def test_the_child_never_outlives_the_process(tools, name, ending):
    tools(name)
    source = (
        "import os, sys, time\n"
        "from mpskit import keep_awake\n"
        "with keep_awake() as awake:\n"
        "    assert awake.active\n"
        "    print(awake.pid, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    os._exit(3)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with subprocess.Popen(
        (sys.executable, "-c", source),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    ) as parent:
        helper = int(parent.stdout.readline())
        family = [helper, *(child.pid for child in psutil.Process(helper).children(recursive=True))]
        if ending is not None:
            parent.send_signal(ending)
        parent.communicate("go\n" if ending is None else None)
        assert parent.returncode == (3 if ending is None else -ending)
    assert all(gone(pid) for pid in family)
