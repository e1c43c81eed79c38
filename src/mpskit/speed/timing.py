"""Times steps: warmed, synchronised, and on two devices in turn (A B B A)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpskit._base.values import Value
from mpskit.backends.memory import DeviceLike, as_device, backend, device_in_use

__all__ = ["Timing", "format_seconds", "synchronize", "time_in_turn", "time_step"]

_WARM_UP = 2
# A step is timed in blocks only if so many of it fit.
_FEW = 10
# Half the width of a 95% interval of the median, in standard deviations of a fair coin's count.
_SIGMAS = 1.96


def synchronize(device: DeviceLike | None = None) -> None:
    """Wait until a device has done the work that was given to it; a clock read before lies.

    Args:
        device: None takes the accelerator that this process uses; the CPU has nothing to wait for.
            A backend that is not in use stays so.

    Raises:
        ArgumentTypeError: it is neither a device nor a name.
        ArgumentError: torch knows no such device.
    """
    backend(device_in_use() if device is None else as_device(device)).synchronize()


class Timing(Value):
    """Times of one step on one device, in seconds.

    Attributes:
        device: as torch writes it.
        median: of all runs.
        low: lower end of the 95% confidence interval of the median, from the order of the runs.
        high: its upper end.
        runs: how many times were taken, warm-up not counted; short steps are timed in blocks.
        first: the first step of all, which compiles kernels and fills caches.
    """

    device: str
    median: float
    low: float
    high: float
    runs: int
    first: float

    def __str__(self) -> str:
        return (
            f"{self.device}: {format_seconds(self.median)} a step "
            f"({format_seconds(self.low)} to {format_seconds(self.high)}, {self.runs} runs)"
        )


def time_step(step: Callable[[], Any], device: str, *, seconds: float) -> Timing:
    """Time a step on a device, after warming up, for about so many seconds, or three runs."""
    return time_in_turn({device: step}, seconds=seconds)[device]


def time_in_turn(
    steps: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Timing]:
    """Time steps in the order A B B A, so that a machine that grows warm or busy favours none.

    Args:
        steps: device -> a step there, without arguments.
        seconds: about how long each device is timed; a longer step runs three times all the same,
            the warm-up counted.
        progress: is told what comes next.

    Raises:
        Whatever a step raises.
    """
    first: dict[str, float] = {}
    warm: dict[str, float] = {}
    times: dict[str, list[float]] = {device: [] for device in steps}
    for device, step in steps.items():
        progress(f"warming up on {device}")
        warm[device] = first[device] = _run(step, device)
        for _ in range(_WARM_UP - 1 if first[device] < seconds else 0):
            warm[device] = _run(step, device)
    devices = list(steps)
    for device in (*devices, *reversed(devices)):
        progress(f"timing on {device}")
        times[device] += _times(steps[device], device, seconds=seconds / 2, each=warm[device])
    return {device: timing_of(device, times[device], first[device]) for device in devices}


def timing_of(device: str, times: Sequence[float], first: float) -> Timing:
    """Return the median of some times with its confidence interval."""
    ordered = sorted(times)
    reach = _SIGMAS * math.sqrt(len(ordered)) / 2
    low = max(0, math.floor(len(ordered) / 2 - reach))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + reach))
    return Timing(
        device=device,
        median=statistics.median(ordered),
        low=ordered[low],
        high=ordered[high],
        runs=len(ordered),
        first=first,
    )


def _times(step: Callable[[], Any], device: str, *, seconds: float, each: float) -> list[float]:
    """Return seconds a step, measured in blocks; each block waits for the device at its end.

    Choosing the size of a block takes runs of its own, which a step that takes much of the time
    (``each`` seconds) has no room for: that one is timed run by run.
    """
    if each * _FEW > seconds:
        return [_run(step, device) for _ in range(max(1, round(seconds / each)))]
    from torch.utils.benchmark import Timer

    timer = Timer("step()", globals={"step": step}, timer=_clock(device))
    # Twice, because one block has no spread.
    return [t for _ in range(2) for t in timer.blocked_autorange(min_run_time=seconds / 2).times]


def _run(step: Callable[[], Any], device: str) -> float:
    """Return the seconds of one step, until the device has finished it."""
    clock = _clock(device)
    start = clock()
    step()
    return clock() - start


def _clock(device: str) -> Callable[[], float]:
    """Return a clock that waits for the device; torch's own waits for the accelerator in use."""
    wait = backend(device).synchronize

    def now() -> float:
        wait()
        return time.perf_counter()

    return now


def format_seconds(seconds: float) -> str:
    """Return a time in the unit that suits it: ``1.5 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
