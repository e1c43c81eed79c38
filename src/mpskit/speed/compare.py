"""Which device is faster for a step of one's own: both are timed, and what came out is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mpskit._base.arguments import check_seconds, shown, wrong_type
from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.backends.memory import as_device
from mpskit.backends.versions import torch_version
from mpskit.device import get_optimal_device
from mpskit.errors import ArgumentError, MemoryGrowthWarning
from mpskit.memory.monitor import MemoryMonitor
from mpskit.speed.count import count_running
from mpskit.speed.diagnosis import made_step
from mpskit.speed.evidence import keep_evidence
from mpskit.speed.timing import Timing, format_seconds, time_in_turn
from mpskit.speed.workload import Workload
from mpskit.system.machine import replaced_readings

__all__ = ["Comparison", "MakeStep", "compare_devices"]

MakeStep: TypeAlias = Callable[[str], Callable[[], Any]]

_SIMULATED = (
    "the machine is simulated: these times are this computer's, not a Mac's, and are not kept"
)


class Comparison(Value):
    """The times of one step on several devices.

    Attributes:
        timings: one for each device, the fastest first.
        memory_bytes: device -> what its tensors held at most during a step, where the device
            tells; for the CPU, by how much the process grew.
        winner: the fastest device.
        speedup: the slowest median / the fastest one.
        clear: whether the confidence intervals of the two fastest lie apart.
        kept: whether the times were kept for ``get_optimal_device(workload=...)``.
        notes: what a person should know.
    """

    timings: tuple[Timing, ...]
    memory_bytes: dict[str, int]
    winner: str
    speedup: float
    clear: bool
    kept: bool
    notes: tuple[str, ...] = ()

    def plot(self, path: str | Path) -> Path:
        """Draw a bar for each device with its confidence interval; return the image's path.

        Raises:
            MissingExtraError: matplotlib is not installed (``pip install 'mpskit[plot]'``).
        """
        from mpskit.speed.plot import plot_comparison

        return plot_comparison(self, Path(path))

    @property
    def verdict(self) -> str:
        """Which device is faster, in a sentence."""
        if len(self.timings) < 2:
            return f"{self.winner} is the only device"
        sure = "" if self.clear else ", but the intervals overlap: no clear winner"
        return f"{self.winner} is {self.speedup:.2f} times faster{sure}"

    def row(self, timing: Timing) -> tuple[str, str, str, str, str]:
        """Return device, time, interval, runs and memory of a timing as text."""
        held = self.memory_bytes.get(timing.device)
        memory = "" if held is None else format_bytes(held)
        interval = f"{format_seconds(timing.low)} to {format_seconds(timing.high)}"
        return timing.device, format_seconds(timing.median), interval, str(timing.runs), memory

    def __str__(self) -> str:
        rows = (self.row(timing) for timing in self.timings)
        lines = [
            f"{device}: {median} a step ({interval}, {runs} runs){memory and f', {memory}'}"
            for device, median, interval, runs, memory in rows
        ]
        return "\n".join([*lines, self.verdict, *(f"note: {note}" for note in self.notes)])


def compare_devices(
    make_step: MakeStep,
    devices: Sequence[str] | None = None,
    *,
    seconds: float = 2.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Time a step on each device, in the order A B B A, synchronised and warmed up.

    ``torch.utils.benchmark`` takes the times. On a machine that is not simulated they are kept for
    the same workload (``mpskit evidence list`` shows them).

    Args:
        make_step: called with a device's name; returns the step there, without arguments.
        devices: None takes the CPU and the accelerator that this machine has.
        seconds: about how long each device is timed.
        progress: is told what happens next.

    Raises:
        ArgumentTypeError: ``make_step`` cannot be called, or makes nothing that can be.
        ArgumentError: no device, or one twice; ``seconds`` is not above 0.
        DeviceUnavailableError: a device is not on this machine.
        Whatever a step raises.
    """
    check_seconds("seconds", seconds)
    names = _devices(devices)
    steps = {name: made_step(make_step, name) for name in names}
    timings = time_in_turn(steps, seconds=seconds, progress=progress)
    memory = {name: _memory(steps[name], name) for name in names}
    workload = _counted(steps, names)
    ranked = sorted(timings.values(), key=lambda timing: timing.median)
    simulated = replaced_readings() is not None
    return Comparison(
        timings=tuple(ranked),
        memory_bytes=memory,
        winner=ranked[0].device,
        speedup=ranked[-1].median / ranked[0].median,
        clear=len(ranked) < 2 or ranked[0].high < ranked[1].low,
        kept=_keep(workload, timings),
        notes=(_SIMULATED,) if simulated else (),
    )


def _devices(devices: Sequence[str] | None) -> list[str]:
    if devices is None:
        chosen = str(get_optimal_device().device)
        return list(dict.fromkeys(("cpu", chosen)))
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise wrong_type("devices", "a list of devices such as ('cpu', 'mps')", devices)
    names = [str(as_device(device)) for device in devices]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(
            f"devices are at least one, each once, not {shown(devices)}", given=devices
        )
    return names


def _memory(step: Callable[[], Any], device: str) -> int:
    """Return the most that a step took of a device, from one more run of it."""
    watched = MemoryMonitor(device, interval=0.01)
    with watched, warnings.catch_warnings():
        warnings.simplefilter("ignore", MemoryGrowthWarning)
        step()
    if watched.peak_bytes is not None:
        return watched.peak_bytes
    sizes = [sample.footprint_bytes or 0 for sample in watched.timeline]
    return max(sizes, default=0) - min(sizes, default=0)


def _counted(steps: Mapping[str, Callable[[], Any]], names: Sequence[str]) -> Workload | None:
    """Count the step where counting is exact: on the CPU, as a trace does."""
    return count_running(steps["cpu"]) if "cpu" in names else None


def _keep(workload: Workload | None, timings: Mapping[str, Timing]) -> bool:
    if workload is None or len(timings) < 2:
        return False
    seconds = {device.split(":")[0]: timing.median for device, timing in timings.items()}
    return keep_evidence(workload, seconds, str(torch_version()))
