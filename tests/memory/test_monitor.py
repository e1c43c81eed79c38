"""The monitor: samples, peaks, growth, and a thread that never outlives its block."""

import csv
import gc
import io
import json
import logging
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest

from mpskit import MemoryMonitor
from mpskit._base.sizes import GIB, MIB
from mpskit.backends import memory as backends
from mpskit.errors import (
    ArgumentError,
    ArgumentTypeError,
    MemoryGrowthWarning,
    MissingExtraError,
)
from mpskit.memory import monitor as monitor_module
from mpskit.memory import snapshot
from mpskit.memory.timeline import Sample, Timeline, growth_without_tensors

FAST = 0.01


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch):
    monkeypatch.setattr(snapshot, "_seen", {})


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mpskit")]


def wait_for(monitor, samples):
    # Only a hang takes so long: no test measures how fast a busy machine is.
    end = time.monotonic() + 120
    while len(monitor.timeline) < samples:
        assert time.monotonic() < end, "the monitor takes no samples"
        time.sleep(FAST)


def test_it_samples_while_the_body_runs(mps):
    with MemoryMonitor("mps", FAST) as monitor:
        wait_for(monitor, 3)
        mps.allocated = 3 * GIB
        wait_for(monitor, len(monitor.timeline) + 2)
        mps.allocated = GIB
    assert (monitor.peak_bytes, monitor.peak_source) == (3 * GIB, "sampled")
    assert monitor.peak_reserved_bytes == 4 * GIB
    assert monitor.peak_footprint_bytes > 10 * MIB
    seconds = [sample.seconds for sample in monitor.timeline]
    assert seconds == sorted(seconds)
    assert monitor.timeline[-1].allocated_bytes == GIB
    assert "3.00 GiB" in str(monitor)
    assert threads() == []


def test_torchs_own_peak_counts_where_it_rose_in_the_block(mps):
    peaks = iter([2 * GIB])
    mps.peak = lambda: next(peaks, 5 * GIB)
    with MemoryMonitor("mps", 60) as monitor:
        pass
    assert (monitor.peak_bytes, monitor.peak_source) == (5 * GIB, "native")


def test_torchs_peak_of_before_the_block_does_not_count(mps):
    mps.peak = 7 * GIB
    with MemoryMonitor("mps", 60) as monitor:
        pass
    assert (monitor.peak_bytes, monitor.peak_source) == (GIB, "sampled")


def test_on_the_cpu_there_is_the_process():
    with MemoryMonitor("cpu", 60) as monitor:
        pass
    assert (monitor.peak_bytes, monitor.peak_source) == (None, None)
    assert monitor.peak_footprint_bytes > 0
    assert len(monitor.timeline) == 2


def test_the_device_that_comes_into_use_is_watched(mps, monkeypatch):
    import torch

    in_use = [torch.device("cpu")]
    monkeypatch.setattr(backends, "device_in_use", lambda: in_use[0])
    with MemoryMonitor(interval=60) as monitor:
        in_use[0] = torch.device("mps")
    assert [sample.allocated_bytes for sample in monitor.timeline] == [None, GIB]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_the_body_raises_comes_through_and_the_thread_ends(error):
    with pytest.raises(error), MemoryMonitor("cpu", FAST):
        raise error
    assert threads() == []


def test_an_interrupt_while_the_thread_is_started_leaves_none(monkeypatch):
    start = threading.Thread.start

    def interrupted(self):
        start(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MemoryMonitor("cpu", FAST).__enter__()
    assert threads() == []


def test_an_interrupt_while_it_waits_for_the_thread_still_ends_it(monkeypatch):
    join = threading.Thread.join

    def interrupted(self, timeout=None):
        if self.name.startswith("mpskit"):
            raise KeyboardInterrupt
        join(self, timeout)

    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt),
        MemoryMonitor("cpu", FAST),
    ):
        patched.setattr(threading.Thread, "join", interrupted)
    for thread in threads():
        thread.join(20)
    assert threads() == []


def test_a_monitor_that_is_forgotten_stops():
    forgotten = MemoryMonitor("cpu", FAST)
    forgotten.__enter__()
    (thread,) = threads()
    del forgotten
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_it_can_be_used_again_but_not_twice_at_once():
    monitor = MemoryMonitor("cpu", 60)
    with monitor:
        with pytest.raises(ArgumentError), monitor:
            pass
        assert len(threads()) == 1
    with monitor:
        pass
    assert len(monitor.timeline) == 2


def test_a_sample_that_fails_does_not_disturb_the_body(mps, monkeypatch):
    def broken():
        raise RuntimeError("no such figure")

    monkeypatch.setattr(monitor_module, "system_memory", broken)
    with MemoryMonitor("mps", FAST) as monitor:
        time.sleep(5 * FAST)
    assert monitor.timeline == ()
    assert threads() == []


class Writer:
    def __init__(self, error=None):
        self.scalars, self.error = [], error

    def add_scalar(self, tag, value, step):
        if self.error:
            raise self.error
        self.scalars.append((tag, value, step))


def test_a_writer_gets_scalars(mps):
    writer = Writer()
    with MemoryMonitor("mps", 60, writer=writer):
        pass
    assert ("memory/allocated_gib", 1.0, 1) in writer.scalars
    assert ("memory/reserved_gib", 4.0, 2) in writer.scalars


def test_a_real_summary_writer_takes_them(mps, tmp_path):
    with warnings.catch_warnings():
        # TensorBoard's own imports warn; what is tried here is the call.
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(tmp_path)) as writer, MemoryMonitor("mps", 60, writer=writer):
            pass
    (events,) = tmp_path.iterdir()
    assert b"memory/allocated_gib" in events.read_bytes()


def test_a_writer_that_fails_is_dropped_and_told(caplog):
    writer = Writer(OSError("disk full"))
    with caplog.at_level(logging.WARNING, "mpskit"), MemoryMonitor("cpu", 60, writer=writer):
        pass
    assert [record.message for record in caplog.records] == [
        "the writer failed and is no longer called"
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"interval": 0}, ArgumentError),
        ({"interval": -1.0}, ArgumentError),
        ({"interval": float("nan")}, ArgumentError),
        ({"interval": float("inf")}, ArgumentError),
        ({"interval": "1"}, ArgumentTypeError),
        ({"interval": True}, ArgumentTypeError),
        ({"device": "banana"}, ArgumentError),
        ({"writer": object()}, ArgumentTypeError),
    ],
)
def test_bad_input_is_a_typed_error(arguments, error):
    with pytest.raises(error) as caught:
        MemoryMonitor(**arguments)
    assert caught.value.given is next(iter(arguments.values()))


# Growth without tensors


def rows(reserved, allocated):
    return [Sample(i, a, r) for i, (r, a) in enumerate(zip(reserved, allocated, strict=True))]


LEAK = [4 * GIB + i * 50 * MIB for i in range(60)]
FLAT = [GIB] * 60


@pytest.mark.parametrize(
    ("reserved", "allocated", "grows"),
    [
        (LEAK, FLAT, True),
        (LEAK, [GIB + (i % 2) * 100 * MIB for i in range(60)], True),
        # The tensors grow as well: a leak of one's own, not the driver's.
        (LEAK, [GIB + i * 50 * MIB for i in range(60)], False),
        # One step up when the allocator warms up.
        ([GIB] * 10 + [6 * GIB] * 50, FLAT, False),
        (FLAT, FLAT, False),
        # Too little to tell from rounding.
        ([GIB + i * MIB for i in range(60)], FLAT, False),
        # Up and down again: the cache is used.
        ([4 * GIB + (i % 10) * 200 * MIB for i in range(60)], FLAT, False),
        # Four tries of one search, each a little higher, with the cache cleared before each: between
        # two samples a step's tensors have gone, so that they seem flat.
        (
            [
                peak - (0 if i else 3) * GIB
                for peak in (5 * GIB, 6 * GIB, 7 * GIB, 8 * GIB)
                for i in range(15)
            ],
            FLAT,
            False,
        ),
        # It goes on growing after a clear.
        ([9 * GIB] * 20 + LEAK[:40], FLAT, True),
        (LEAK[:10], FLAT[:10], False),
        ([None] * 60, FLAT, False),
        (LEAK, [None] * 60, False),
        ([], [], False),
    ],
)
def test_what_counts_as_growth(reserved, allocated, grows):
    assert (growth_without_tensors(rows(reserved, allocated)) is not None) is grows


@pytest.fixture
def leak(mps):
    sizes = iter(LEAK)
    mps.reserved = lambda: next(sizes, LEAK[-1])


def grow(error=None):
    with MemoryMonitor("mps", FAST) as monitor:
        wait_for(monitor, 50)
        if error:
            raise error


def test_growth_is_logged_at_once_and_warned_of_at_the_end(leak, caplog):
    with caplog.at_level(logging.WARNING, "mpskit"), pytest.warns(MemoryGrowthWarning) as caught:
        grow()
    assert Path(caught[0].filename) == Path(__file__)
    assert len([record for record in caplog.records if "grew by" in record.message]) == 1


def test_a_warning_never_hides_the_bodys_own_error(leak):
    with pytest.raises(ZeroDivisionError):
        grow(ZeroDivisionError())


# Timelines and files


def test_a_long_run_is_thinned_and_keeps_its_peak_and_its_end():
    timeline = Timeline(most=10)
    for i in range(1000):
        timeline.add(Sample(i, footprint_bytes=10_000 if i == 17 else i))
    kept = timeline.samples()
    assert 5 <= len(kept) <= 10
    assert kept[-1].seconds == 999
    assert timeline.peak("footprint_bytes") == 10_000
    assert timeline.peak("allocated_bytes") is None


def test_csv(mps, tmp_path):
    with MemoryMonitor("mps", 60) as monitor:
        pass
    text = monitor.to_csv(tmp_path / "memory.csv").read_text()
    first, last = list(csv.DictReader(io.StringIO(text)))
    assert (first["allocated_bytes"], last["reserved_bytes"]) == (str(GIB), str(4 * GIB))
    assert last["gpu_percent"] == ""


@pytest.mark.parametrize("write", ["to_csv", "plot"])
def test_a_name_that_no_file_can_have(mps, write):
    with MemoryMonitor("mps", 60) as monitor:
        pass
    with pytest.raises(ArgumentError, match="null byte"):
        getattr(monitor, write)("a\0b")


def test_a_plot_is_a_png(mps, tmp_path):
    with MemoryMonitor("mps", FAST) as monitor:
        wait_for(monitor, 3)
    data = monitor.plot(str(tmp_path / "memory.png")).read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert len(data) > 5000


@pytest.mark.parametrize("method", ["plot", "to_csv"])
def test_a_file_that_cannot_be_written_is_a_clear_error(method, tmp_path):
    with MemoryMonitor("cpu", 60) as monitor:
        pass
    target = tmp_path / "absent" / "memory.out"
    with pytest.raises(ArgumentError, match=r"'memory\.out' cannot be written") as caught:
        getattr(monitor, method)(target)
    assert caught.value.given == str(target)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("method", ["plot", "to_csv"])
@pytest.mark.parametrize("path", [None, 3])
def test_what_is_no_path_is_a_typed_error(method, path):
    with pytest.raises(ArgumentTypeError) as caught:
        getattr(MemoryMonitor("cpu"), method)(path)
    assert caught.value.given == path


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    with MemoryMonitor("cpu", 60) as monitor:
        pass
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mpskit\[plot\]"):
        monitor.plot(tmp_path / "memory.png")


# Many at once


def monitors(seconds):
    """Monitor in eight threads, over and over; return errors and what is left open."""
    errors, end = [], time.monotonic() + seconds

    def work():
        try:
            while time.monotonic() < end:
                with MemoryMonitor("cpu", FAST) as monitor:
                    time.sleep(2 * FAST)
                assert monitor.peak_footprint_bytes
        except BaseException as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return errors


def open_things():
    me = psutil.Process()
    return threading.active_count(), me.num_fds(), len(me.children())


def monitor_in_processes(seconds):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import json, test_monitor as t; t.monitors(0.1); before = t.open_things()\n"
        f"print(json.dumps([t.monitors({seconds}), before == t.open_things()]))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    return [json.loads(child.communicate()[0]) for child in children]


def test_eight_threads_in_two_processes_leave_nothing_open():
    assert monitor_in_processes(1.5) == [[[], True]] * 2


@pytest.mark.full  # the same as above, for 30 seconds
def test_eight_threads_in_two_processes_leave_nothing_open_in_30_seconds():
    assert monitor_in_processes(30) == [[[], True]] * 2
