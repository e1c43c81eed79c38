"""Memory samples over time: stored, checked for growth, written as CSV and plotted."""

from __future__ import annotations

import csv
import itertools
import threading
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from mpskit._base.arguments import wrong_type
from mpskit._base.figures import new_figure, save_figure, unwritable
from mpskit._base.sizes import GIB, MIB, format_bytes

__all__ = ["Sample", "Timeline", "growth_without_tensors", "plot_samples", "write_csv"]

_MOST = 20_000
# The rule of `growth_without_tensors`: enough samples, and growth beyond rounding.
_WINDOW = 60
_LEAST_SAMPLES = 16
_LEAST_GROWTH = 256 * MIB
_PARTS = 4


class Sample(NamedTuple):
    """The figures of one moment; sizes in bytes, None where missing.

    Attributes:
        seconds: time since the start.
        allocated_bytes: what live tensors hold.
        reserved_bytes: what the backend holds, caches included.
        footprint_bytes: the process's own memory (for a command: with all its children).
        available_bytes: RAM that can be had without swapping.
        gpu_percent: the GPU's utilization by all programs.
    """

    seconds: float
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    footprint_bytes: int | None = None
    available_bytes: int | None = None
    gpu_percent: float | None = None


class Timeline:
    """Samples in order, thinned to every other one when there are many, and the peaks of all."""

    def __init__(self, most: int = _MOST) -> None:
        self._samples: list[Sample] = []
        self._peaks: dict[str, int] = {}
        self._most = most
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        with self._lock:
            self._samples.append(sample)
            for name in ("allocated_bytes", "reserved_bytes", "footprint_bytes"):
                size = getattr(sample, name)
                if size is not None:
                    self._peaks[name] = max(size, self._peaks.get(name, 0))
            if len(self._samples) > self._most:
                newest = len(self._samples) - 1
                self._samples = self._samples[newest % 2 :: 2]

    def samples(self) -> tuple[Sample, ...]:
        """Return the samples so far."""
        with self._lock:
            return tuple(self._samples)

    def latest(self) -> list[Sample]:
        """Return the newest samples, as many as `growth_without_tensors` looks at."""
        with self._lock:
            return self._samples[-_WINDOW:]

    def peak(self, name: str) -> int | None:
        """Return the largest value of a field; thinning does not lose it."""
        with self._lock:
            return self._peaks.get(name)


def growth_without_tensors(samples: Sequence[Sample]) -> int | None:
    """Return how much the driver's memory grew while the tensors' did not; None for no growth.

    The newest 60 samples since the driver last released memory are split into four parts. The
    driver's maximum must rise in every part, by 256 MiB and a tenth in total, while the tensors'
    maximum changes by at most a tenth of that. A single step up, as when an allocator warms up, is
    not growth; nor is a retry with another batch size, which clears the cache in between.
    """
    rows = [
        (sample.reserved_bytes, sample.allocated_bytes)
        for sample in samples[-_WINDOW:]
        if sample.reserved_bytes is not None and sample.allocated_bytes is not None
    ]
    rows = rows[_last_drop(rows) :]
    if len(rows) < _LEAST_SAMPLES:
        return None
    size = len(rows) // _PARTS
    parts = [rows[start : start + size] for start in range(0, size * _PARTS, size)]
    held = [max(reserved for reserved, _ in part) for part in parts]
    live = [max(allocated for _, allocated in part) for part in parts]
    growth = held[-1] - held[0]
    rising = all(before < after for before, after in itertools.pairwise(held))
    large = growth >= max(_LEAST_GROWTH, held[0] // 10)
    return growth if rising and large and max(live) - min(live) <= growth // 10 else None


def _last_drop(rows: Sequence[tuple[int, int]]) -> int:
    """Return the index where the driver's figure last fell by more than a tenth."""
    held = [reserved for reserved, _ in rows]
    drops = (i for i in range(len(held) - 1, 0, -1) if held[i] < held[i - 1] * 9 // 10)
    return next(drops, 0)


def write_csv(samples: Iterable[Sample], path: str | Path) -> Path:
    """Write the samples as CSV with a header; an unknown figure is an empty cell.

    Raises:
        ArgumentTypeError: ``path`` is no path.
        ArgumentError: the file cannot be written.
    """
    target = _target(path)
    try:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Sample._fields)
            writer.writerows(samples)
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from error
    return target


# The machine's memory is drawn from this share on; below, its line would flatten the curves.
_NEAR = 0.25
_LINES = {
    "footprint_bytes": "process",
    "reserved_bytes": "held by driver",
    "allocated_bytes": "tensors",
}


def plot_samples(
    samples: Sequence[Sample], path: str | Path, title: str, *, ram_bytes: int | None = None
) -> Path:
    """Draw the samples over time as a PNG (needs the extra ``plot``), the highest one marked.

    Args:
        samples: in order.
        path: the file.
        title: the plot's title.
        ram_bytes: the machine's memory, drawn as a line where the samples come near it.

    Raises:
        ArgumentTypeError: ``path`` is no path.
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the file cannot be written.
    """
    target = _target(path)
    figure, axes = new_figure(9, 4.5, layout="constrained")
    _draw(axes, samples, title, ram_bytes)
    return save_figure(figure, target, format="png")


def _draw(axes: Any, samples: Sequence[Sample], title: str, ram: int | None) -> None:
    highest = max((_most(samples, field) for field in _LINES), default=0)
    unit, name = (GIB, "GiB") if highest >= GIB else (MIB, "MiB")
    for field, label in _LINES.items():
        points = _points(samples, field, unit)
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    _mark_peak(axes, samples, unit)
    if ram is not None and highest >= ram * _NEAR:
        axes.axhline(ram / unit, color="black", linestyle="--", linewidth=1, label="RAM")
    axes.set(title=title, xlabel="seconds", ylabel=name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    busy = _points(samples, "gpu_percent", 1)
    if busy:
        right = axes.twinx()
        right.plot(*zip(*busy, strict=True), color="grey", linestyle=":", label="GPU")
        right.set(ylabel="GPU in use (%)", ylim=(0, 100))
    if axes.get_legend_handles_labels()[0]:
        # Beside the curves, so that it covers none.
        axes.figure.legend(loc="outside right upper", frameon=False)


def _mark_peak(axes: Any, samples: Sequence[Sample], unit: int) -> None:
    """Mark the highest sample of the first line drawn, with a dot and its size."""
    for field in _LINES:
        size = _most(samples, field)
        if size:
            seconds = next(one.seconds for one in samples if getattr(one, field) == size)
            axes.plot([seconds], [size / unit], "o", color="black", markersize=4)
            at = {"textcoords": "offset points", "xytext": (0, 6), "ha": "center", "fontsize": 8}
            axes.annotate(f"peak {format_bytes(size)}", (seconds, size / unit), **at)
            return


def _most(samples: Sequence[Sample], field: str) -> int:
    return max((getattr(sample, field) or 0 for sample in samples), default=0)


def _points(samples: Sequence[Sample], field: str, unit: int) -> list[tuple[float, float]]:
    pairs = [(sample.seconds, getattr(sample, field)) for sample in samples]
    return [(seconds, value / unit) for seconds, value in pairs if value is not None]


def _target(path: object) -> Path:
    if not isinstance(path, str | PathLike):
        raise wrong_type("path", "a str or a Path", path)
    return Path(path)
