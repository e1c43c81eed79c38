"""Children within bounds of time and output; nothing that they started outlives the bound."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from mpskit.system import process
from mpskit.system.process import output_of, run_bounded

PYTHON = sys.executable


def python(code, **options):
    return run_bounded([PYTHON, "-c", code], **{"seconds": 30} | options)


def gone(pid, within=10.0):
    end = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("own_session", [True, False])
def test_how_a_child_ended_and_what_it_said(own_session):
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert python(code, own_session=own_session) == (3, "out\n", "err\n")


def test_it_has_no_input_and_its_own_variables():
    code = "import os, sys; print(repr(sys.stdin.read()), os.environ['GIVEN'])"
    assert python(code, environ=os.environ | {"GIVEN": "here"}).stdout == "'' here\n"


def test_bytes_that_are_no_text_are_replaced():
    assert python("import sys; sys.stdout.buffer.write(b'a\\xffb')").stdout == "a\ufffdb"


def test_output_beyond_the_cap_is_thrown_away_and_blocks_nobody(monkeypatch):
    monkeypatch.setattr(process, "_MOST_OUTPUT", 1000)
    done = python("import sys; sys.stdout.write('x' * 5_000_000); sys.stderr.write('end')")
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1000, "end")


# The grandchild holds the pipes open: only its own end can close them.
FAMILY = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "open(sys.argv[1], 'w').write(str(child.pid))\n"
)


@pytest.mark.parametrize("child", ["stays", "leaves"])
def test_the_whole_group_is_killed(tmp_path, child):
    code, pid = FAMILY + ("time.sleep(60)" if child == "stays" else ""), tmp_path / "pid"
    command = [PYTHON, "-c", code, str(pid)]
    if child == "stays":
        with pytest.raises(TimeoutError, match="longer than 2 s"):
            run_bounded(command, seconds=2)
    else:
        assert run_bounded(command, seconds=2).returncode == 0
    assert gone(int(pid.read_text()))


def test_an_interrupt_kills_the_child_too(monkeypatch):
    started = []

    def interrupted(self, timeout=None):
        if not started:
            started.append(self.pid)
            raise KeyboardInterrupt
        return wait(self, timeout)

    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python("import time; time.sleep(60)")
    assert gone(started[0])


def test_a_program_that_is_absent_cannot_be_started():
    with pytest.raises(FileNotFoundError):
        run_bounded(["/no/such/program"], seconds=1)


@pytest.mark.parametrize(
    ("code", "text"), [("print(' said ')", "said"), ("print('said'); raise SystemExit(1)", None)]
)
def test_the_output_of_a_program(code, text):
    assert output_of((PYTHON, "-c", code), seconds=30) == text


def test_a_program_that_hangs_or_is_absent_has_no_output():
    assert output_of((PYTHON, "-c", "import time; time.sleep(60)"), seconds=0.2) is None
    assert output_of(("/no/such/program",), seconds=1) is None
    assert not [t for t in threading.enumerate() if t.name == "mpskit-child-output"]
