"""Memory now: the device's, the process's and the machine's figures side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from mpskit._base.sizes import format_bytes
from mpskit._base.state import remembered
from mpskit._base.values import Value
from mpskit.system.memory import Pressure, memory_pressure, system_memory
from mpskit.system.process import footprint_bytes

if TYPE_CHECKING:
    import torch

    from mpskit.backends.memory import DeviceLike

__all__ = ["DeviceFigures", "MemorySnapshot", "device_figures", "memory_snapshot"]

PeakSource: TypeAlias = Literal["native", "sampled"]

_ROWS = {
    "tensors": "allocated_bytes",
    "held by driver": "reserved_bytes",
    "peak of tensors": "peak_bytes",
    "process": "footprint_bytes",
    "available RAM": "available_bytes",
    "swap in use": "swap_used_bytes",
}

# The maximum over all snapshots and monitors, by device: the peak of backends that keep none.
_seen: dict[str, int] = remembered({})
_lock = threading.Lock()


class MemorySnapshot(Value):
    """Memory at one moment; sizes in bytes, None where the system or torch reports none.

    Attributes:
        device: the device that was asked.
        time_s: the time in seconds since 1970.
        allocated_bytes: what live tensors hold, as the allocator rounds it. None on the CPU, whose
            allocator keeps no count.
        reserved_bytes: what the backend holds for this process, caches included. MPS: the Metal
            driver's total, including what Metal's own libraries hold.
        peak_bytes: the most that live tensors held.
        peak_source: ``native`` if torch keeps it (CUDA, XPU; MPS from 2.13), ``sampled`` if it is
            the most that a snapshot or a monitor of this process has seen.
        footprint_bytes: the process's own memory: ``phys_footprint`` on macOS, resident less
            shared pages on Linux, private bytes on Windows.
        available_bytes: RAM that can be had without swapping.
        swap_used_bytes: swap in use on the machine.
        pressure: the memory pressure that the system reports.
        notes: what could not be read, and why.
    """

    device: str
    time_s: float
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_bytes: int | None = None
    peak_source: PeakSource | None = None
    footprint_bytes: int | None = None
    available_bytes: int | None = None
    swap_used_bytes: int | None = None
    pressure: Pressure | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [(label, getattr(self, field)) for label, field in _ROWS.items()]
        lines = [
            f"  {label:<16}{format_bytes(size):>12}" for label, size in rows if size is not None
        ]
        peak = [f"  peak: {self.peak_source}"] if self.peak_source else []
        pressure = [f"  memory pressure: {self.pressure}"] if self.pressure else []
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([f"Memory of {self.device}", *lines, *peak, *pressure, *notes])


class DeviceFigures(NamedTuple):
    """A backend's memory figures; see :class:`MemorySnapshot`."""

    allocated: int | None
    reserved: int | None
    peak: int | None
    peak_source: PeakSource | None
    notes: tuple[str, ...]


def memory_snapshot(device: DeviceLike | None = None) -> MemorySnapshot:
    """Return the present memory figures; a missing one is None, never an error.

    It does not initialise CUDA or XPU, nor MPS from torch 2.13 on (an unused device holds 0 bytes).
    Before 2.13 it is a first use of the MPS allocator, which freezes its watermarks.

    Args:
        device: the device; None takes the accelerator in use, else the CPU.

    Raises:
        ArgumentTypeError: ``device`` is neither a device nor a string.
        ArgumentError: torch knows no device of that name.
    """
    from mpskit.backends.memory import as_device, device_in_use

    chosen = as_device(device) if device is not None else device_in_use()
    figures, ram = device_figures(chosen), system_memory()
    return MemorySnapshot(
        device=str(chosen),
        time_s=time.time(),
        allocated_bytes=figures.allocated,
        reserved_bytes=figures.reserved,
        peak_bytes=figures.peak,
        peak_source=figures.peak_source,
        footprint_bytes=footprint_bytes(),
        available_bytes=ram.available,
        swap_used_bytes=ram.swap_used,
        pressure=memory_pressure(),
        notes=figures.notes,
    )


def device_figures(device: torch.device) -> DeviceFigures:
    """Return a backend's figures; its errors become notes."""
    from mpskit.backends.memory import backend

    asked = backend(device)
    notes: list[str] = []
    allocated = _figure(asked.allocated_bytes, notes)
    reserved = _figure(asked.reserved_bytes, notes)
    seen = _most_seen(str(device), allocated)
    native = _figure(asked.peak_bytes, notes)
    source: PeakSource | None = "sampled" if seen is not None else None
    peak, source = (seen, source) if native is None else (native, "native")
    return DeviceFigures(allocated, reserved, peak, source, tuple(dict.fromkeys(notes)))


def _most_seen(device: str, allocated: int | None) -> int | None:
    with _lock:
        if allocated is not None:
            _seen[device] = max(allocated, _seen.get(device, 0))
        return _seen.get(device)


def _figure(ask: Callable[[], int | None], notes: list[str]) -> int | None:
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - a backend that fails has no figure to give
        notes.append(f"{type(error).__name__}: {_first_line(error)}")
        return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
