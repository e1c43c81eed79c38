"""A command is run to its end, its signals reach it once, and it never outlives its watcher.

tests/cli/test_monitor.py has the same from outside: a monitor, its child and real signals.
"""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from mpskit.system import command as command_module
from mpskit.system.command import exit_code, tree_footprint, watch_command

PYTHON = sys.executable
# Only a hang takes so long: no test measures how fast a busy machine is.
LONG = 120.0
MIB = 2**20


def test_exit_codes():
    assert [exit_code(code) for code in (0, 3, -9, -15)] == [0, 3, 137, 143]


class Child:
    """What the handlers do to a process, as words."""

    pid = 2**22 + 1  # no process has it

    def __init__(self):
        self.done = []

    def send_signal(self, number):
        self.done.append(number)

    def terminate(self):
        self.done.append("terminate")


@pytest.mark.parametrize(("at_terminal", "first"), [(True, []), (False, [signal.SIGINT])])
def test_ctrl_c_at_a_terminal_is_not_sent_twice(monkeypatch, at_terminal, first):
    # The terminal sends it to the monitor and its child alike.
    killed = []
    monkeypatch.setattr(command_module, "_kill", killed.append)
    child = Child()
    interrupt = command_module._interrupting([child], at_terminal)
    for _ in range(3):
        interrupt(signal.SIGINT, None)
    assert child.done == [*first, "terminate"]
    assert killed == [child.pid]


FROM_TERMINAL = "from mpskit.system.command import _from_terminal as f; raise SystemExit(40 + f())"


def test_a_terminal_is_told_from_a_pipe():
    ours, theirs = os.openpty()
    try:
        at_terminal = subprocess.run(
            [PYTHON, "-c", FROM_TERMINAL], preexec_fn=lambda: os.login_tty(theirs), timeout=LONG
        )
    finally:
        os.close(theirs)
        os.close(ours)
    elsewhere = subprocess.run(
        [PYTHON, "-c", FROM_TERMINAL], stdin=subprocess.DEVNULL, timeout=LONG
    )
    assert (at_terminal.returncode, elsewhere.returncode) == (41, 40)


def test_an_error_while_watching_ends_the_child(monkeypatch):
    monkeypatch.setattr(command_module, "_GRACE_S", 0.2)
    others = set(psutil.Process().children())  # a resource tracker that another test started
    started = []

    def fail(sample, timeline):
        started.extend(set(psutil.Process().children()) - others)
        raise ZeroDivisionError

    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(ZeroDivisionError):
        watch_command([PYTHON, "-c", ignoring], 0.05, fail)
    assert started
    assert not any(child.is_running() for child in started)


def test_a_tree_that_has_ended_has_no_footprint():
    assert tree_footprint(2**22 + 1) is None
    assert tree_footprint(os.getpid()) > 10 * MIB
