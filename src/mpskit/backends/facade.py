"""The one facade over torch's backends: memory, cache, synchronise.

Every figure is in bytes, and None where the backend or the installed torch does not have it, so
that callers never compare versions nor catch a missing name. A backend without a class of its own
in ``mpskit.backends.memory`` is asked through ``torch.accelerator``, whose memory calls raise on
MPS from torch 2.9 to 2.12 (pytorch#186430, pytorch#167447): MPS is asked through ``torch.mps``.

Nothing here initialises a backend unless its docstring says so. CUDA and XPU say whether they are
in use. MPS can say it from torch 2.13 on; before, :func:`is_initialized` is None, and every memory
call is itself a first use of the allocator: it allocates nothing, but
``PYTORCH_MPS_HIGH_WATERMARK_RATIO`` and its LOW twin are read then, once and for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit.backends.memory import BACKENDS, Accelerator, Backend, DeviceLike, torch_has
from mpskit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DeviceLike",
    "allocated_bytes",
    "as_device",
    "device_in_use",
    "device_name",
    "empty_cache",
    "free_bytes",
    "is_initialized",
    "max_buffer_bytes",
    "memory_fraction",
    "peak_bytes",
    "recommended_bytes",
    "reserved_bytes",
    "reset_peak",
    "set_memory_fraction",
    "synchronize",
    "torch_has",
    "total_bytes",
]


def as_device(device: DeviceLike) -> torch.device:
    """Return ``device`` as a ``torch.device``.

    Raises:
        ArgumentTypeError: it is neither a device nor a string.
        ArgumentError: torch knows no device of that name.
    """
    import torch

    if not isinstance(device, torch.device | str):
        raise ArgumentTypeError(
            f"a device is 'mps', 'cuda:0' or such, not {device!r}", given=device
        )
    try:
        return torch.device(device)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ArgumentError(f"{device!r} is not a device: {first}", given=device) from None


def device_in_use() -> torch.device:
    """Return the accelerator this process already uses, else torch's default device.

    The machine's best device is not the question: a process on the CPU of a Mac gets ``cpu``.
    Where it cannot be asked (MPS before torch 2.13) MPS counts as in use if it is available.
    """
    import torch

    default = torch.get_default_device() if hasattr(torch, "get_default_device") else None
    if default is not None and default.type != "cpu":
        return default
    return torch.device(
        next((kind for kind in _candidates() if is_initialized(kind) is not False), "cpu")
    )


def _candidates() -> list[str]:
    """Return the accelerators that could be in use, those with a class of their own first."""
    import torch

    kinds = ["cuda", "xpu", "mps"]
    found = torch.accelerator.current_accelerator() if torch_has("accelerator") else None
    return kinds if found is None or found.type in kinds else [*kinds, found.type]


def _backend(device: DeviceLike) -> Backend:
    kind = device.partition(":")[0] if isinstance(device, str) else device.type
    return BACKENDS.get(kind, Accelerator)(device)


def is_initialized(device: DeviceLike) -> bool | None:
    """Return whether the device's allocator is in use; None where torch cannot be asked.

    That is MPS before torch 2.13: ``torch.mps`` has no such question, and asking anything else
    about its memory would be the first use. From 2.13 on the answer is whether the watermark
    variables have been read, and asking reads nothing: ``MPSAllocator::initialized`` only loads a
    flag that ``init_allocator`` sets at its end (code of the macOS wheel of 2.13.0). The CPU is
    always in use; a backend that is not available never is.
    """
    return _backend(device).is_initialized()


def synchronize(device: DeviceLike) -> None:
    """Wait until the device has done the work given to it; nothing if it is not in use."""
    _backend(device).synchronize()


def empty_cache(device: DeviceLike) -> None:
    """Give cached memory back to the system; nothing if the device is not in use.

    On MPS it synchronises first, and from torch 2.13 it clears the graph cache too. Before 2.13 it
    is a first use of the allocator.
    """
    _backend(device).empty_cache()


def allocated_bytes(device: DeviceLike) -> int | None:
    """Return the bytes of live tensors as the allocator rounds them; a first use on old MPS."""
    return _backend(device).allocated()


def reserved_bytes(device: DeviceLike) -> int | None:
    """Return what the process holds of the device, caches included; a first use on old MPS.

    MPS: ``torch.mps.driver_allocated_memory()``, which counts whole heaps and what Metal's own
    libraries hold. CUDA, XPU and others: what the caching allocator has reserved.
    """
    return _backend(device).reserved()


def peak_bytes(device: DeviceLike) -> int | None:
    """Return the most live bytes since the start or :func:`reset_peak`; MPS from torch 2.13 on."""
    return _backend(device).peak()


def reset_peak(device: DeviceLike) -> bool:
    """Start the peak anew from now; return whether the backend keeps one."""
    return _backend(device).reset_peak()


def total_bytes(device: DeviceLike) -> int | None:
    """Return the device's own memory; None for MPS and the CPU, which share the machine's.

    Initialises CUDA or XPU, whose properties cannot be read otherwise.
    """
    return _backend(device).total()


def free_bytes(device: DeviceLike) -> int | None:
    """Return what is free on the device itself, for all processes; None for MPS and the CPU.

    Initialises CUDA or XPU.
    """
    return _backend(device).free()


def recommended_bytes(device: DeviceLike) -> int | None:
    """Return Metal's recommended working set (torch 2.5 on); None for everything but MPS.

    A first use of the MPS allocator: it freezes the watermark variables.
    """
    return _backend(device).recommended()


def max_buffer_bytes(device: DeviceLike) -> int | None:
    """Return the largest single Metal buffer (torch 2.13 on); None for everything but MPS."""
    return _backend(device).max_buffer()


def memory_fraction(device: DeviceLike) -> float | None:
    """Return the cap that :func:`set_memory_fraction` set; None where torch keeps it to itself.

    Only newer CUDA and XPU builds tell; MPS never does.
    """
    return _backend(device).fraction()


def set_memory_fraction(device: DeviceLike, fraction: float) -> bool:
    """Cap the process's share of the device; return whether the backend has such a cap.

    CUDA, XPU: a share of the device's memory, 0 to 1. MPS: a ratio of the recommended working
    set, 0 to 2, where 0 lifts the limit. A first use of the device in either case.
    """
    return _backend(device).set_fraction(fraction)


def device_name(device: DeviceLike) -> str | None:
    """Return the device's name as its maker gives it; MPS from torch 2.9. Initialises CUDA, XPU."""
    return _backend(device).name()
