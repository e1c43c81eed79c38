"""What clearing costs where there is nothing to clear: a scope on the CPU, beside accelerate's.

    python benchmarks/bench_cache.py [--rounds 15]

Each row is one call or one empty ``with``; all are run in turn in every round, so that what else
the machine does falls on all alike, and the table has the median and the least of the rounds.
The last rows show what a clear in every step would cost on top of a 10 ms step.

To reach: under 2 us a ``with empty_cache_scope(collect=False)`` on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import time
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, release_memory

from mpskit import CacheKeeper, empty_cache_scope

STEP_SECONDS = 0.010


def null() -> None:
    with contextlib.nullcontext():
        pass


def scope() -> None:
    with empty_cache_scope(collect=False):
        pass


def scope_cpu() -> None:
    with empty_cache_scope("cpu", collect=False):
        pass


def scope_above() -> None:
    with empty_cache_scope(above="1GiB", collect=False):
        pass


REUSED = empty_cache_scope(collect=False)
KEEPER = CacheKeeper(every=100)


def scope_again() -> None:
    with REUSED:
        pass


def scope_collect() -> None:
    with empty_cache_scope():
        pass


def release() -> None:
    release_memory()


def collected() -> None:
    clear_device_cache(garbage_collection=True)


# name, function, how often it runs in a round
ROWS: list[tuple[str, Callable[[], object], int]] = [
    ("`with contextlib.nullcontext()`", null, 20_000),
    ("`with empty_cache_scope(collect=False)`", scope, 20_000),
    ('`with empty_cache_scope("cpu", collect=False)`', scope_cpu, 20_000),
    ("the same scope object used again", scope_again, 20_000),
    ('`with empty_cache_scope(above="1GiB", collect=False)`', scope_above, 5_000),
    ("`CacheKeeper(every=100).step()`", KEEPER.step, 20_000),
    ("accelerate `clear_device_cache()`", clear_device_cache, 2_000),
    ("`with empty_cache_scope()` (collects garbage)", scope_collect, 5),
    ("accelerate `clear_device_cache(garbage_collection=True)`", collected, 5),
    ("accelerate `release_memory()`", release, 5),
]


def measure(function: Callable[[], object], calls: int) -> float:
    """Return the mean microseconds of a call."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name, _, _ in ROWS}
    for _ in range(rounds):
        for name, function, calls in ROWS:
            times[name].append(measure(function, calls))
    base = statistics.median(times["accelerate `clear_device_cache()`"])
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, CPU only\n")
    print("| | median us | least us | of accelerate's `clear_device_cache()` | of a 10 ms step |")
    print("|---|---:|---:|---:|---:|")
    for name, _, _ in ROWS:
        median, least = statistics.median(times[name]), min(times[name])
        share = f"{median / base:.3g}x"
        step = f"{median / (STEP_SECONDS * 1e6):.4%}"
        print(f"| {name} | {median:.2f} | {least:.2f} | {share} | {step} |")


if __name__ == "__main__":
    main()
