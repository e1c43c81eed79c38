"""Children within bounds of time and output; nothing that they started outlives the bound."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from mpskit.system import process
from mpskit.system.process import Helper, MemoryUser, largest_users, output_of, run_bounded

PYTHON = sys.executable
# Only a hang takes so long: no test measures how fast a busy machine is.
LONG = 120.0


def python(code, **options):
    return run_bounded([PYTHON, "-c", code], **{"seconds": LONG} | options)


def gone(pid, within=LONG):
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


@pytest.fixture
def grandchild(tmp_path, monkeypatch):
    """The file with the grandchild's number; the child's time counts from when it is written."""
    file, wait = tmp_path / "pid", subprocess.Popen.wait

    def wait_from_then_on(child, timeout=None):
        end = time.monotonic() + LONG
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
        return wait(child, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_from_then_on)
    return file


def test_the_whole_group_is_killed(grandchild):
    command = [PYTHON, "-c", FAMILY + "time.sleep(60)", str(grandchild)]
    with pytest.raises(TimeoutError, match=r"longer than 0\.2 s"):
        run_bounded(command, seconds=0.2)
    assert gone(int(grandchild.read_text()))


def test_so_is_what_a_child_left_behind(tmp_path, monkeypatch):
    file, wait = tmp_path / "pid", subprocess.Popen.wait
    # The child ends by itself, whenever that is; its time is over while the pipe is still held.
    monkeypatch.setattr(subprocess.Popen, "wait", lambda child, timeout=None: wait(child, LONG))
    assert run_bounded([PYTHON, "-c", FAMILY, str(file)], seconds=0.1).returncode == 0
    assert gone(int(file.read_text()))


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
    assert output_of((PYTHON, "-c", code), seconds=LONG) == text


def test_a_program_that_hangs_or_is_absent_has_no_output():
    assert output_of((PYTHON, "-c", "import time; time.sleep(60)"), seconds=0.2) is None
    assert output_of(("/no/such/program",), seconds=1) is None
    assert not [t for t in threading.enumerate() if t.name == "mpskit-child-output"]


def test_no_thread_that_reads_a_child_keeps_the_process_from_ending():
    read, write = os.pipe()
    os.write(write, b"x" * 1000)
    os.close(write)
    stream = process._Stream(os.fdopen(read, "rb"))
    stream.join(LONG)
    assert (stream.daemon, bytes(stream.kept)) == (True, b"x" * 1000)


def test_the_footprint_of_a_process(monkeypatch):
    info = SimpleNamespace(rss=900, shared=300)
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(memory_info=lambda: info))
    monkeypatch.setattr(sys, "platform", "linux")
    assert process.footprint_bytes() == process.footprint_bytes(7) == 600


def test_the_programs_that_hold_most(monkeypatch):
    def running(pid, name, size):
        memory = None if size is None else SimpleNamespace(rss=size)
        return SimpleNamespace(pid=pid, info={"name": name, "exe": "", "memory_info": memory})

    mine = os.getpid()
    found = [
        running(mine, "python", 10_000),
        running(mine + 1, "browser", 300),
        running(mine + 2, "browser", 400),
        running(mine + 3, "editor", 500),
        running(mine + 4, "hidden", None),
        running(mine + 5, "", 900),
        running(mine + 6, "idle", 0),
        running(mine + 7, "small", 1),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda _: iter(found))
    users = [MemoryUser(name="browser", resident_bytes=700, processes=2),
             MemoryUser(name="editor", resident_bytes=500, processes=1),
             MemoryUser(name="small", resident_bytes=1, processes=1)]  # fmt: skip
    assert largest_users() == tuple(users)
    assert largest_users(1) == tuple(users[:1])
    found = [running(mine + at, f"p{at}", at) for at in range(1, 8)]
    assert [user.name for user in largest_users()] == ["p7", "p6", "p5", "p4", "p3"]


@pytest.fixture
def helper():
    """Start a helper; whatever the test does, nothing of it stays."""
    started = []

    def start(code):
        return Helper([PYTHON, "-c", code], started)

    yield start
    for one in started:
        one.stop()


WAITS = "; import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("code", "good"),
    [
        ("print(' ready ', flush=True)" + WAITS, True),
        ("print('not so', flush=True)" + WAITS, False),
        ("pass", False),
    ],
)
def test_the_first_line_of_a_helper(helper, code, good):
    assert helper(code).says("ready", within=LONG) is good


def test_a_helper_runs_until_it_is_stopped(helper):
    one = helper("print('ready', flush=True)" + WAITS)
    assert one.says("ready", within=LONG)
    assert one.running
    pid = one.pid
    one.stop()
    assert not one.running
    assert gone(pid)
    one.stop()


def test_a_helper_that_says_nothing_is_not_waited_for(helper):
    one = helper("import time; time.sleep(60)")
    assert not one.says("ready", within=0.01)
    assert one.running


def test_a_helper_that_heeds_no_order_is_killed(helper, monkeypatch):
    monkeypatch.setattr(process, "_STOP_S", 0.1)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    one = helper(deaf + "print('ready', flush=True)" + WAITS)
    assert one.says("ready", within=LONG)
    one.stop()
    assert gone(one.pid)


def test_a_helper_that_was_not_started_has_nothing_to_stop():
    started = []
    with pytest.raises(FileNotFoundError):
        Helper(["/no/such/program"], started)
    (one,) = started
    assert (one.pid, one.running, one.says("ready", within=1)) == (None, False, False)
    one.stop()
