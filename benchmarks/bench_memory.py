"""What watching memory costs: the monitor beside a 10 ms step, and single readings.

    python benchmarks/bench_memory.py

The step is a matrix product repeated until it takes about 10 ms. Blocks of steps with and without
a monitor alternate, so that what else the machine does falls on both alike; each row gives the
median of the ratios of neighbouring blocks. The share that one sample takes of its interval is
measured as well, because it shows through any noise: it bounds what a step can lose.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import psutil
import torch
from results import NOISE, Column, Plot, Row, Section, Size, Table, median, script

import mpskit
from mpskit import MemoryMonitor, memory_budget, memory_budget_for, memory_snapshot
from mpskit.system.process import footprint_bytes

NOTES = (
    (
        "Blocks of steps with and without a monitor alternate; each figure is the median ratio of "
        "neighbouring blocks, the control's shows how restless the machine is. The cost of one "
        "sample bounds what a step can lose. The resident size (`rss`) is cheaper and counts "
        "shared pages, so it is no peer. The aim: less than 1% of a 10 ms step."
    ),
)
STEP_S = 0.010
INTERVAL_S = 0.5
BLOCK_S = 2 * INTERVAL_S


def make_step() -> Callable[[], None]:
    """Return a step of about 10 ms on one thread."""
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    for _ in range(20):
        left @ right
    started = time.perf_counter()
    for _ in range(50):
        left @ right
    repeats = max(1, round(STEP_S / ((time.perf_counter() - started) / 50)))

    def step() -> None:
        for _ in range(repeats):
            left @ right

    return step


def block(step: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Return a step's mean time over a block: by the clock, and of the process's CPU."""
    started, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return (time.perf_counter() - started) / steps, (time.process_time() - cpu) / steps


def ratios(step: Callable[[], None], seconds: float, watch: bool) -> list[tuple[float, float]]:
    """Return the ratios of neighbouring blocks, the watched one to the other.

    Without ``watch`` neither is watched: the control, which shows how far the machine's own
    restlessness moves the figure.
    """
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times = {}
        for first in (True, False) if len(found) % 2 else (False, True):
            with MemoryMonitor("cpu", INTERVAL_S) if first and watch else contextlib.nullcontext():
                times[first] = block(step, BLOCK_S)
        pairs = zip(times[True], times[False], strict=True)
        clock, cpu = (with_ / without for with_, without in pairs)
        found.append((clock, cpu))
    return found


def sample_cost(device: str, samples: int = 200) -> float:
    """Return the seconds that one sample takes on its thread, waiting included (median)."""
    monitor, times = MemoryMonitor(device, 60), []
    with monitor:
        for _ in range(samples):
            started = time.perf_counter()
            monitor._sample()
            times.append(time.perf_counter() - started)
    return median(times)


def each(function: Callable[[], object], seconds: float = 1.0) -> float:
    """Return the median time of a call."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return median(times)


@contextlib.contextmanager
def place(device: str) -> Iterator[None]:
    """Be on a simulated Mac, its allocator in use, where the device is one of its."""
    if device != "mps":
        yield
        return
    with mpskit.simulate("m1-16gb"):
        held = torch.ones(1000, device="mps")
        yield
        del held


def overhead(seconds: float) -> Table:
    """Return what the monitor costs beside the step, and beside other ways to read memory."""
    step, rows = make_step(), []
    for watch, label in ((True, "with / without a monitor"), (False, "control: without / without")):
        clock, cpu = (median(column) for column in zip(*ratios(step, seconds, watch), strict=True))
        rows.append(Row(values={"who": label, "cpu": cpu, "clock": clock}, side=None))
    return Table(
        title="A step of 10 ms with a monitor and without",
        columns=(
            Column(key="who", heading="neighbouring blocks"),
            Column(key="cpu", heading="CPU time, ratio"),
            Column(key="clock", heading="clock, ratio"),
        ),
        rows=tuple(rows),
    )


def samples() -> Table:
    rows = []
    for device, label in (("cpu", "cpu"), ("mps", "simulated mps")):
        with place(device):
            cost = sample_cost(device)
        values = {"who": label, "seconds": cost, "share": cost / INTERVAL_S}
        rows.append(Row(values=values, side="ours"))
    return Table(
        title="One sample of the monitor",
        columns=(
            Column(key="who", heading="device"),
            Column(key="seconds", heading="time", unit="seconds"),
            Column(key="share", heading="of the interval of 0.5 s", unit="percent"),
        ),
        rows=tuple(rows),
    )


def single_calls(seconds: float) -> Table:
    """Return what one reading costs."""
    process, what = psutil.Process(), "the process's own memory"
    calls: list[tuple[str, str, str | None, Callable[[], object]]] = [
        (what, "mpskit `footprint_bytes()`", "ours", footprint_bytes),
        (what, "psutil `memory_full_info().uss`", "peer", lambda: process.memory_full_info().uss),
        (what, "psutil `memory_info().rss`", None, lambda: process.memory_info().rss),
        ("a snapshot", "`memory_snapshot('cpu')`", "ours", lambda: memory_snapshot("cpu")),
        ("a budget", "`memory_budget('cpu')`", "ours", lambda: memory_budget("cpu")),
        ("of a machine", "`memory_budget_for(16 GiB)`", "ours", lambda: memory_budget_for(2**34)),
    ]
    rows = [
        Row(values={"case": case, "who": who, "seconds": each(function, seconds)}, side=side)
        for case, who, side, function in calls
    ]
    return Table(
        title="One reading",
        columns=(
            Column(key="who", heading="call"),
            Column(key="seconds", heading="median", unit="seconds", better="low", margin=NOISE),
        ),
        rows=tuple(rows),
        case="case",
        plot=Plot(column="seconds", title="Time of one reading of memory", log=True),
    )


def section(size: Size) -> Section:
    """Measure and return the tables."""
    torch.set_num_threads(1)
    tables = (overhead(size.of(2, 16, 40)), samples(), single_calls(size.of(0.1, 1, 2)))
    return Section(
        name="memory",
        title="Watching memory",
        question="What does a monitor cost beside a training step, and what does one reading cost?",
        command="python benchmarks/bench_memory.py",
        full="python benchmarks/bench_memory.py --size full",
        page="memory",
        tables=tables,
        notes=NOTES,
    )


if __name__ == "__main__":
    script(section)
