"""What watching memory costs: the monitor beside a 10 ms step, and single readings.

    python benchmarks/bench_memory.py [--seconds 20]

The step is a matrix product repeated until it takes about 10 ms. Blocks of steps with and without
a monitor alternate, so that what else the machine does falls on both alike; each row gives the
median of the ratios of neighbouring blocks. The share that one sample takes of its interval is
measured as well, because it shows through any noise: it bounds what a step can lose.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import psutil
import torch

import mpskit
from mpskit import MemoryMonitor, memory_budget, memory_budget_for, memory_snapshot
from mpskit.system.process import footprint_bytes

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
    return statistics.median(times)


def each(function: Callable[[], object], seconds: float = 1.0) -> float:
    """Return the median time of a call."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


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


def overhead(seconds: float) -> None:
    """Print what the monitor costs beside the step."""
    step = make_step()
    print(f"step {block(step, 1.0)[0] * 1e3:.1f} ms, interval {INTERVAL_S} s, {seconds:.0f} s each")
    print(f"{'median ratio of neighbouring blocks':<40}{'CPU time':>10}{'clock':>10}{'pairs':>7}")
    for watch, label in ((True, "with / without a monitor"), (False, "control: without / without")):
        found = ratios(step, seconds, watch)
        clock, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{label:<40}{cpu:>10.4f}{clock:>10.4f}{len(found):>7}")
    for device, label in (("cpu", "cpu"), ("mps", "simulated mps")):
        with place(device):
            cost = sample_cost(device)
        share = f"{cost / INTERVAL_S:.3%} of the interval"
        print(f"{f'one sample, {label}':<40}{cost * 1e6:>7.0f} us  {share}")


def single_calls() -> None:
    """Print what one reading costs."""
    process = psutil.Process()
    calls: dict[str, Callable[[], object]] = {
        "memory_snapshot('cpu')": lambda: memory_snapshot("cpu"),
        "memory_budget('cpu')": lambda: memory_budget("cpu"),
        "memory_budget_for(16 GiB)": lambda: memory_budget_for(16 * 2**30),
        "footprint_bytes()": footprint_bytes,
        "psutil memory_full_info().uss": lambda: process.memory_full_info().uss,
    }
    for label, function in calls.items():
        print(f"{label:<44}{each(function) * 1e6:>7.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row of ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    overhead(arguments.seconds)
    single_calls()


if __name__ == "__main__":
    main()
