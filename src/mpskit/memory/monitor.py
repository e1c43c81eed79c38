"""Samples memory on a thread while code runs: peaks, a timeline, a warning of growth."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from mpskit._base.arguments import shown, wrong_type
from mpskit._base.log import log
from mpskit._base.sizes import GIB, format_bytes
from mpskit.errors import ArgumentError, ArgumentTypeError, MemoryGrowthWarning
from mpskit.memory.snapshot import PeakSource, device_figures
from mpskit.memory.timeline import (
    Sample,
    Timeline,
    growth_without_tensors,
    plot_samples,
    write_csv,
)
from mpskit.system.gpu import gpu_percent
from mpskit.system.memory import system_memory
from mpskit.system.process import footprint_bytes

if TYPE_CHECKING:
    import torch

    from mpskit.backends.memory import DeviceLike

__all__ = ["MemoryMonitor", "ScalarWriter", "check_interval"]

_SHORTEST_INTERVAL_S = 0.01
_TAGS = {
    "memory/allocated_gib": "allocated_bytes",
    "memory/reserved_gib": "reserved_bytes",
    "memory/process_gib": "footprint_bytes",
}
_GROWTH = (
    "the memory that the driver holds grew by {} while the tensors' did not: inputs of many shapes "
    "(pad or bucket them), or a cache that empty_cache() clears"
)


class ScalarWriter(Protocol):
    """The used part of TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Record one value."""


class MemoryMonitor:
    """Sample memory on a thread while the body of a ``with`` runs.

        with MemoryMonitor("mps") as monitor:
            train()
        print(monitor)
        monitor.plot("memory.png")

    The thread ends with the block, whatever the body does, or when the monitor is garbage
    collected. A failed sample lacks figures but never disturbs the body. Before torch 2.13 a sample
    is a first use of the MPS allocator (see :func:`mpskit.memory_snapshot`).

    If the driver's memory keeps growing while the tensors' stays flat, a line is logged at once
    and a :class:`~mpskit.errors.MemoryGrowthWarning` given at the end of the block.

    Args:
        device: the device; None takes the accelerator once one is in use, else the CPU.
        interval: seconds between samples, at least 0.01.
        writer: a TensorBoard ``SummaryWriter`` or anything with its ``add_scalar``; it is called
            on the sampling thread, in GiB, with the number of the sample as the step.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: torch knows no such device, or the interval is too short.
    """

    def __init__(
        self,
        device: DeviceLike | None = None,
        interval: float = 0.5,
        *,
        writer: ScalarWriter | None = None,
    ) -> None:
        from mpskit.backends.memory import as_device

        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise ArgumentTypeError(f"writer has no add_scalar: {shown(writer)}", given=writer)
        self.interval = check_interval(interval)
        self._device = as_device(device) if device is not None else None
        self._watched = "no device yet" if device is None else str(device)
        self._writer = writer
        self._thread: threading.Thread | None = None
        self._begin(time.monotonic())

    def _begin(self, now: float) -> None:
        self._timeline = Timeline()
        self._stop = threading.Event()
        self._started = now
        self._grown: int | None = None
        self._count = 0
        self._native_before = 0
        self._native_peak = 0

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise ArgumentError("this monitor is already running", given=self)
        self._begin(time.monotonic())
        self._sample()
        # The thread has a weak reference to the monitor, so an abandoned one stops by itself.
        self._thread = threading.Thread(
            target=_run,
            args=(weakref.ref(self), self._stop, self.interval),
            name="mpskit-memory-monitor",
            daemon=True,
        )
        try:
            self._thread.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        if self._grown is not None and error is None:
            text = _GROWTH.format(format_bytes(self._grown))
            warnings.warn(text, MemoryGrowthWarning, stacklevel=2)

    def _end(self) -> None:
        """Stop the thread, wait for a sample in progress, and take the last one."""
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None and thread.ident is not None:
            thread.join()
            self._sample()

    @property
    def timeline(self) -> tuple[Sample, ...]:
        """The samples so far; in a long run every other one is dropped, repeatedly."""
        return self._timeline.samples()

    @property
    def peak_bytes(self) -> int | None:
        """The most that live tensors held in the block, in bytes; None on the CPU."""
        if self.peak_source == "native":
            return self._native_peak
        return self._timeline.peak("allocated_bytes")

    @property
    def peak_source(self) -> PeakSource | None:
        """``native`` if torch recorded the peak, ``sampled`` if it is the highest sample."""
        # Torch's peak is the process's, and the block's only if it rose inside.
        if self._native_peak > self._native_before:
            return "native"
        return None if self._timeline.peak("allocated_bytes") is None else "sampled"

    @property
    def peak_reserved_bytes(self) -> int | None:
        """The most that the backend held for this process, caches included, by the samples."""
        return self._timeline.peak("reserved_bytes")

    @property
    def peak_footprint_bytes(self) -> int | None:
        """The largest footprint of the process, by the samples."""
        return self._timeline.peak("footprint_bytes")

    def to_csv(self, path: str | Path) -> Path:
        """Write the timeline as CSV, in seconds and bytes.

        Raises:
            ArgumentTypeError: ``path`` is no path.
            ArgumentError: the file cannot be written.
        """
        return write_csv(self.timeline, path)

    def plot(self, path: str | Path) -> Path:
        """Draw the timeline as a PNG (needs the extra ``plot``).

        Raises:
            ArgumentTypeError: ``path`` is no path.
            MissingExtraError: matplotlib is not installed.
            ArgumentError: the file cannot be written.
        """
        return plot_samples(self.timeline, path, f"Memory of {self._watched}")

    def __str__(self) -> str:
        peaks = {
            f"tensors ({self.peak_source})": self.peak_bytes,
            "held by driver": self.peak_reserved_bytes,
            "process": self.peak_footprint_bytes,
        }
        known = [f"{name} {format_bytes(size)}" for name, size in peaks.items() if size is not None]
        return f"Peak memory of {self._watched}: {', '.join(known)}; {self._count} samples"

    def _chosen(self) -> torch.device:
        from mpskit.backends.memory import device_in_use

        return self._device if self._device is not None else device_in_use()

    def _sample(self) -> None:
        """Take a sample; log a failure instead of disturbing the body."""
        try:
            self._take(self._chosen())
        except Exception:  # noqa: BLE001 - a missing figure must not end the training
            log.debug("a memory sample failed", exc_info=True)

    def _take(self, device: torch.device) -> None:
        self._watched = str(device)
        figures = device_figures(device)
        if figures.peak is not None and figures.peak_source == "native":
            self._native_peak = max(self._native_peak, figures.peak)
        if self._count == 0:
            # A device first used inside the block starts at zero.
            self._native_before = self._native_peak
        sample = Sample(
            seconds=time.monotonic() - self._started,
            allocated_bytes=figures.allocated,
            reserved_bytes=figures.reserved,
            footprint_bytes=footprint_bytes(),
            available_bytes=system_memory().available,
            gpu_percent=gpu_percent(),
        )
        self._timeline.add(sample)
        self._count += 1
        self._judge()
        self._write(sample)

    def _judge(self) -> None:
        """Detect growth without tensors; it is logged once, and warned of at the end."""
        grown = growth_without_tensors(self._timeline.latest())
        if grown is not None and self._grown is None:
            log.warning(_GROWTH.format(format_bytes(grown)))
        self._grown = grown if grown is not None else self._grown

    def _write(self, sample: Sample) -> None:
        if self._writer is None:
            return
        try:
            for tag, field in _TAGS.items():
                size = getattr(sample, field)
                if size is not None:
                    self._writer.add_scalar(tag, size / GIB, self._count)
        except Exception:  # noqa: BLE001 - the user's code, on our thread
            self._writer = None
            log.warning("the writer failed and is no longer called", exc_info=True)


def _run(forgetful: weakref.ref[MemoryMonitor], stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        monitor = forgetful()
        if monitor is None:
            return
        monitor._sample()
        del monitor


def check_interval(interval: object) -> float:
    """Return a checked interval in seconds.

    Raises:
        ArgumentTypeError: it is not a number.
        ArgumentError: it is below 0.01, or not finite.
    """
    if isinstance(interval, bool) or not isinstance(interval, int | float):
        raise wrong_type("interval", "a number of seconds", interval)
    if not _SHORTEST_INTERVAL_S <= interval <= threading.TIMEOUT_MAX:
        raise ArgumentError(
            f"interval={shown(interval)} is not between {_SHORTEST_INTERVAL_S} s and the longest "
            "wait",
            given=interval,
        )
    return float(interval)
