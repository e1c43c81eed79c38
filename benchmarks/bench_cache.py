"""Clearing the cache beside accelerate: what a call costs, and what a clear gives back.

    python benchmarks/bench_cache.py

The first table is on the CPU, where there is nothing to clear: each row is one call or one empty
``with``; all are run in turn in every round, so that what else the machine does falls on all alike.
The second table is on a simulated Mac: the same work, ended in each library's way, and what its
allocator still holds afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, release_memory
from results import NOISE, Column, Plot, Row, Section, Size, Table, median, script

import mpskit
from mpskit import CacheKeeper, empty_cache, empty_cache_scope, is_oom

MACHINE = "m1-16gb"
REUSED = empty_cache_scope(collect=False)
KEEPER = CacheKeeper(every=100)
OURS, PEER = "ours", "peer"
SMALL, COLLECT = "garbage is not collected", "garbage is collected"


def null() -> None:
    with contextlib.nullcontext():
        pass


def scope() -> None:
    with empty_cache_scope(collect=False):
        pass


def scope_again() -> None:
    with REUSED:
        pass


def scope_above() -> None:
    with empty_cache_scope(above="1GiB", collect=False):
        pass


def scope_collect() -> None:
    with empty_cache_scope():
        pass


def clear_all() -> None:
    clear_device_cache(garbage_collection=True)


# case, name, function, side, calls in a round
CALLS: list[tuple[str, str, Callable[[], object], str | None, int]] = [
    (SMALL, "`with contextlib.nullcontext()`", null, None, 20_000),
    (SMALL, "mpskit `with empty_cache_scope(collect=False)`", scope, OURS, 20_000),
    (SMALL, "mpskit, the same scope object used again", scope_again, OURS, 20_000),
    (
        SMALL,
        'mpskit `with empty_cache_scope(above="1GiB", collect=False)`',
        scope_above,
        OURS,
        5_000,
    ),
    (SMALL, "mpskit `CacheKeeper(every=100).step()`", KEEPER.step, OURS, 20_000),
    (SMALL, "accelerate `clear_device_cache()`", clear_device_cache, PEER, 2_000),
    (COLLECT, "mpskit `with empty_cache_scope()`", scope_collect, OURS, 5),
    (COLLECT, "accelerate `clear_device_cache(garbage_collection=True)`", clear_all, PEER, 5),
    (COLLECT, "accelerate `release_memory()`", release_memory, PEER, 5),
]


def measure(function: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of a call."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def calls_table(rounds: int) -> Table:
    """Return what a call costs where there is nothing to clear."""
    times: dict[str, list[float]] = {name: [] for _, name, _, _, _ in CALLS}
    for _ in range(rounds):
        for _, name, function, _, calls in CALLS:
            times[name].append(measure(function, calls))
    rows = [
        Row(values={"case": case, "who": name, "median": median(its), "least": min(its)}, side=side)
        for case, name, _, side, _ in CALLS
        for its in [times[name]]
    ]
    return Table(
        title="A call where there is nothing to clear",
        columns=(
            Column(key="who", heading="call"),
            Column(key="median", heading="median", unit="seconds", better="low", margin=NOISE),
            Column(key="least", heading="least", unit="seconds"),
        ),
        rows=tuple(rows),
        case="case",
        plot=Plot(column="median", title="Time of a call on the CPU, nothing to clear", log=True),
    )


def weights(count: int = 8) -> list[torch.Tensor]:
    """Return tensors of 64 MiB each on the simulated Mac."""
    return [torch.zeros(2**24, device="mps") for _ in range(count)]


def held() -> int:
    """Return what torch's allocator holds of the simulated Mac."""
    return int(torch.mps.driver_allocated_memory())


def freed_mpskit() -> None:
    kept = weights()
    del kept
    empty_cache()


def freed_accelerate() -> None:
    kept = weights()
    del kept
    release_memory()


def variables_mpskit() -> int:
    a, b = weights(4), weights(4)
    del a, b
    empty_cache()
    return held()


def variables_accelerate() -> int:
    a, b = weights(4), weights(4)
    a, b = release_memory(a, b)  # as its documentation says
    return held()


def cycle() -> list[object]:
    its: list[object] = [weights()]
    its.append(its)
    return its


def cycle_mpskit() -> None:
    cycle()
    empty_cache()


def cycle_accelerate() -> None:
    cycle()
    release_memory()


def overflow() -> None:
    """Hold 512 MiB in a local variable, then ask for more than the Mac has."""
    kept = weights()
    torch.zeros(2**32, device="mps").add_(kept[0][0])


def error_mpskit() -> int:
    try:
        with empty_cache_scope():
            overflow()
    except RuntimeError as error:
        if not is_oom(error):
            raise
        return held()  # the error, and with it its frames, is still there
    raise AssertionError("it fitted")


def error_accelerate() -> int:
    try:
        overflow()
    except RuntimeError as error:
        if not is_oom(error):
            raise
        release_memory()
        return held()
    raise AssertionError("it fitted")


ENDS: dict[str, tuple[Callable[[], int | None], Callable[[], int | None]]] = {
    "tensors deleted, then cleared": (freed_mpskit, freed_accelerate),
    "local variables, each library's documented way": (variables_mpskit, variables_accelerate),
    "tensors in a reference cycle": (cycle_mpskit, cycle_accelerate),
    "out of memory, while the error is handled": (error_mpskit, error_accelerate),
}


def ended(function: Callable[[], int | None]) -> tuple[int, float]:
    """Return the bytes that are still held after it, and the CPU time of what it did."""
    gc.collect()
    torch.mps.empty_cache()
    before = held()
    started = time.process_time()
    left = function()
    seconds = time.process_time() - started
    return (held() if left is None else left) - before, seconds


def clears_table(rounds: int) -> Table:
    """Return what is left after a clear on the simulated Mac."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with mpskit.simulate(MACHINE):
        small = torch.zeros(1, device="mps")  # the allocator's first heap
        for _ in range(rounds):
            for case, functions in ENDS.items():
                for who, function in zip(("mpskit", "accelerate"), functions, strict=True):
                    found.setdefault((case, who), []).append(ended(function))
        del small
    rows = []
    for (case, who), its in found.items():
        left = max(left for left, _ in its)
        seconds = median([seconds for _, seconds in its])
        values = {"case": case, "who": who, "left": left, "seconds": seconds}
        rows.append(Row(values=values, side=OURS if who == "mpskit" else PEER))
    return Table(
        title="What a clear gives back on a simulated Mac",
        columns=(
            Column(key="case", heading="512 MiB of tensors"),
            Column(key="who", heading="library"),
            Column(key="left", heading="still held", unit="bytes", better="low"),
            Column(key="seconds", heading="CPU time, tensors included", unit="seconds"),
        ),
        rows=tuple(rows),
        case="case",
        plot=Plot(column="left", title="Held after a clear of 512 MiB (simulated M1, 16 GB)"),
        note=(
            "`a, b = release_memory(a, b)` clears while the caller's variables still refer to the "
            "tensors: they go when the result is assigned, after the cache was emptied. A second "
            "`release_memory()` would return it. While an error is handled, it refers to the "
            "frames that it came through, and they to their tensors; `empty_cache_scope` releases "
            "these frames' variables first."
        ),
    )


def section(size: Size) -> Section:
    """Measure and return the tables."""
    rounds = size.of(1, 9, 15)
    return Section(
        name="cache",
        title="Clearing the cache",
        question=(
            "What does a clear cost where there is nothing to clear, and how much does it give "
            "back, beside accelerate's `release_memory`?"
        ),
        command="python benchmarks/bench_cache.py",
        page="cache",
        tables=(calls_table(rounds), clears_table(size.of(1, 3, 9))),
        notes=(
            (
                "The first table is in microseconds of the clock, the rows in turn in every round. "
                "The bytes of the second are those of the simulated allocator after the same work; "
                "what a clear on a real Mac waits for its GPU was not measured."
            ),
        ),
    )


if __name__ == "__main__":
    script(section)
