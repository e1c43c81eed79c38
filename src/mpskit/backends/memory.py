"""One interface to torch's backends: ``backend(device)``, its memory, cache, synchronisation.

Every figure is in bytes, or None where the backend or the installed torch does not have it, so
callers never compare versions or catch a missing name. Features of a torch release are looked up in
``mpskit.backends.versions``, and names that a build may lack are probed. A backend without a module
of its own is asked through ``torch.accelerator``, whose memory calls raise on MPS from torch 2.9 to
2.12 (pytorch#186430, pytorch#167447): MPS is asked through ``torch.mps``.

Nothing here initialises a backend unless its docstring says so. CUDA and XPU say whether they are
in use. MPS can say it from torch 2.13 on; before, :meth:`Backend.is_initialized` is None, and every
memory call is itself a first use of the allocator: it allocates nothing, but
``PYTORCH_MPS_HIGH_WATERMARK_RATIO`` and its LOW counterpart are read then, once per process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from mpskit._base.arguments import shown
from mpskit.backends.facts import build_of, current_accelerator
from mpskit.backends.kinds import ACCELERATORS, KINDS, Api, Kind, MemoryClass, kind_of
from mpskit.backends.versions import has, torch_version
from mpskit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Backend",
    "DeviceLike",
    "as_device",
    "backend",
    "cache_owners",
    "device_in_use",
    "present_kinds",
    "torch_has",
]

DeviceLike: TypeAlias = "torch.device | str"

# Compute capability of the first CUDA generation that computes in bfloat16 (Ampere; NVIDIA, CUDA
# C++ Programming Guide, "Arithmetic Instructions"); AMD cards report 9 and more.
_CUDA_BF16 = (8, 0)


def torch_has(feature: str) -> bool:
    """Return whether the installed torch has a feature of the version table."""
    version = torch_version()
    return version is not None and has(feature, version)


def as_device(device: DeviceLike) -> torch.device:
    """Return ``device`` as a ``torch.device``.

    Raises:
        ArgumentTypeError: it is neither a device nor a string.
        ArgumentError: torch knows no device of that name.
    """
    import torch

    if not isinstance(device, torch.device | str):
        raise ArgumentTypeError(
            f"device must be one such as 'mps' or 'cuda:0', got {shown(device)}", given=device
        )
    try:
        return torch.device(device)
    except RuntimeError:
        # Torch's own message lists every device type it ever had, such as ipu and mkldnn.
        raise ArgumentError(
            f"{shown(device)} is not a device: use one of {', '.join(KINDS)}, or one of several as "
            "cuda:1",
            given=device,
        ) from None


def present_kinds() -> tuple[str, ...]:
    """Return the types of the accelerators that this build of torch could be using.

    From torch 2.6 on it is at most one, and asking does not initialise it.
    """
    if not torch_has("accelerator"):
        return ACCELERATORS
    found = current_accelerator()
    return () if found is None else (found,)


def mps_settings() -> Any:
    """Return ``torch.backends.mps``, where torch itself asks for the macOS."""
    import torch

    return torch.backends.mps


def default_device() -> torch.device | None:
    """Return torch's default device, or None where it cannot be asked."""
    import torch

    try:
        return torch.get_default_device()
    except AttributeError:  # 2.2 has no such function; 2.6's fails after set_default_device(None)
        return None


def device_in_use() -> torch.device:
    """Return the accelerator this process already uses, else torch's default device.

    This is not the machine's best device: a process on a Mac's CPU gets ``cpu``. MPS before torch
    2.13 cannot be asked and counts as in use if it is available.
    """
    import torch

    default = default_device()
    if default is not None and default.type != "cpu":
        return default
    in_use = (kind for kind in present_kinds() if backend(kind).is_initialized() is not False)
    return torch.device(next(in_use, "cpu"))


def backend(device: DeviceLike) -> Backend:
    """Return the interface to a device, which need not be on this machine."""
    kind = kind_of(device)
    return APIS[kind.api](device, kind)


def cache_owners() -> tuple[Any, ...]:
    """Return the modules of torch whose ``empty_cache`` a program may call."""
    import torch

    modules = (getattr(torch, name, None) for name in (*ACCELERATORS, "accelerator"))
    return tuple(module for module in modules if hasattr(module, "empty_cache"))


class Backend:
    """A device without an allocator of its own (the CPU): every figure is None."""

    _ALLOCATED, _RESERVED, _PEAK = "memory_allocated", "memory_reserved", "max_memory_allocated"

    def __init__(self, device: DeviceLike, kind: Kind) -> None:
        self.device = device
        self.kind = kind

    @property
    def label(self) -> str:
        """The backend's usual name, with what torch was built for: ``ROCm (HIP 6.2)``."""
        row, version = build_of(self.kind)
        return row.label(version)

    def is_available(self) -> bool:
        """Return whether torch sees such a device."""
        return True

    def is_initialized(self) -> bool | None:
        """Return whether the device's allocator is in use; None where torch cannot be asked.

        The latter is MPS before torch 2.13: ``torch.mps`` has no such query, and any other query
        about its memory would be the first use. From 2.13 on the answer is whether the watermark
        variables have been read, and asking reads nothing: ``MPSAllocator::initialized`` only loads
        a flag that ``init_allocator`` sets at its end (code of the macOS wheel of 2.13.0). The CPU
        is always in use; a backend that is not available never is.
        """
        return True

    def synchronize(self) -> None:
        """Wait until the device has finished its work; do nothing if it is not in use."""

    def empty_cache(self) -> None:
        """Return cached memory to the system; do nothing if the device is not in use.

        On MPS it synchronises first, and from torch 2.13 it clears the graph cache too. Before 2.13
        it is a first use of the allocator.
        """

    def allocated_bytes(self) -> int | None:
        """Return the bytes of live tensors as the allocator rounds them; a first use on old MPS."""
        return self._figure(self._ALLOCATED)

    def reserved_bytes(self) -> int | None:
        """Return what the process holds of the device, caches included; a first use on old MPS.

        MPS: ``torch.mps.driver_allocated_memory()``, which counts whole heaps and what Metal's own
        libraries hold. CUDA, XPU and others: what the caching allocator has reserved.
        """
        return self._figure(self._RESERVED)

    def peak_bytes(self) -> int | None:
        """Return the most live bytes since the start or a reset; MPS from torch 2.13 on."""
        return self._figure(self._PEAK)

    def _figure(self, function: str) -> int | None:  # noqa: ARG002 - there is nothing to ask
        return None

    def reset_peak(self) -> bool:
        """Reset the peak; return whether the backend keeps one."""
        return False

    def total_bytes(self) -> int | None:
        """Return the device's own memory; None for MPS and the CPU, which share the machine's.

        Initialises CUDA or XPU, whose properties cannot be read otherwise.
        """
        return None

    def shares_ram(self) -> bool:
        """Return whether its memory is the machine's: MPS, the CPU, an integrated GPU.

        Initialises CUDA or XPU.
        """
        return self.kind.memory is not MemoryClass.OWN

    def free_bytes(self) -> int | None:
        """Return what is free on the device itself, for all processes; None for MPS and the CPU.

        Initialises CUDA or XPU.
        """
        return None

    def recommended_bytes(self) -> int | None:
        """Return Metal's recommended working set (torch 2.5 on); None for everything but MPS.

        A first use of the MPS allocator: it freezes the watermark variables.
        """
        return None

    def max_buffer_bytes(self) -> int | None:
        """Return the largest single Metal buffer (torch 2.13 on); None for everything but MPS."""
        return None

    def memory_fraction(self) -> float | None:
        """Return the cap that :meth:`set_memory_fraction` set; None where torch does not tell.

        Only newer CUDA and XPU builds report it; MPS never does.
        """
        return None

    def set_memory_fraction(self, fraction: float) -> bool:  # noqa: ARG002 - nothing to cap
        """Cap the process's share of the device; return whether the backend has such a cap.

        CUDA, XPU: a share of the device's memory, 0 to 1. MPS: a ratio of the recommended working
        set, 0 to 2, where 0 lifts the limit. A first use of the device in either case.
        """
        return False

    def name(self) -> str | None:
        """Return the device's name as its maker gives it; MPS from torch 2.9.

        Initialises CUDA or XPU.
        """
        return None

    def computes_bfloat16(self) -> bool | None:
        """Return whether the card computes in bfloat16 (CUDA, XPU); None where it cannot be asked.

        Initialises CUDA or XPU.
        """
        return None

    def grad_scaler(self, *, enabled: bool) -> Any:
        """Return a ``GradScaler`` for the device; before torch 2.3 there is only CUDA's.

        Without such a card it is disabled, which torch would do with a warning.
        """
        import torch

        if torch_has("amp.grad_scaler"):
            return torch.amp.GradScaler(self.kind.name, enabled=enabled)
        return torch.cuda.amp.GradScaler(enabled=enabled)


class _Module(Backend):
    """``torch.cuda`` (ROCm too) and ``torch.xpu``, which share their names."""

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call ``torch.<kind>.<function>``; None where this torch has no such name."""
        import torch

        found = getattr(getattr(torch, self.kind.name, None), function, None)
        return found(*arguments) if found is not None else None

    def is_available(self) -> bool:
        return bool(self._ask("is_available"))

    def is_initialized(self) -> bool | None:
        return bool(self._ask("is_initialized"))

    def grad_scaler(self, *, enabled: bool) -> Any:
        return super().grad_scaler(enabled=enabled and self.is_available())

    def synchronize(self) -> None:
        if self.is_initialized():
            self._ask("synchronize", self.device)

    def empty_cache(self) -> None:
        # torch.<kind>.empty_cache() does nothing before the backend's first use.
        self._ask("empty_cache")

    def _figure(self, function: str) -> int | None:
        if not self.is_initialized():
            return 0 if self.is_available() else None
        found = self._ask(function, self.device)
        return None if found is None else int(found)

    def reset_peak(self) -> bool:
        if not self.is_initialized():
            return False
        self._ask("reset_peak_memory_stats", self.device)
        return True

    def _property(self, *names: str) -> Any:
        """Return the first of these device properties that this torch has; None for none."""
        found = self._ask("get_device_properties", self.device) if self.is_available() else None
        return next((getattr(found, name) for name in names if hasattr(found, name)), None)

    def total_bytes(self) -> int | None:
        total = self._property("total_memory")
        return None if total is None else int(total)

    def shares_ram(self) -> bool:
        # cudaDeviceProp's name for it (Jetson, GB10), and SYCL's aspect (Intel's processors).
        return bool(self._property("is_integrated", "is_integrated_gpu"))

    def free_bytes(self) -> int | None:
        found = self._ask("mem_get_info", self.device) if self.is_available() else None
        return None if found is None else int(found[0])

    def memory_fraction(self) -> float | None:
        name = "get_per_process_memory_fraction"
        found = self._ask(name, self.device) if self.is_initialized() else None
        return None if found is None else float(found)

    def set_memory_fraction(self, fraction: float) -> bool:
        import torch

        name = "set_per_process_memory_fraction"
        if not self.is_available() or not hasattr(getattr(torch, self.kind.name), name):
            return False
        self._ask(name, float(fraction), self.device)
        return True

    def name(self) -> str | None:
        return str(self._ask("get_device_name", self.device)) if self.is_available() else None

    def computes_bfloat16(self) -> bool | None:
        told: bool | None = self._property("has_bfloat16_conversions")
        if told is not None or not self.is_available():
            return told
        capability = self._ask("get_device_capability", self.device)
        return capability >= _CUDA_BF16 if isinstance(capability, tuple) else None


class _Mps(Backend):
    """``torch.mps``, and ``torch.accelerator`` for what only that has (from 2.13)."""

    _ALLOCATED, _RESERVED = "current_allocated_memory", "driver_allocated_memory"

    def is_available(self) -> bool:
        import torch

        return bool(torch.backends.mps.is_available())

    def is_initialized(self) -> bool | None:
        import torch

        if not self.is_available():
            return False
        asked = getattr(torch._C, "_accelerator_isAllocatorInitialized", None)
        return bool(asked()) if asked and torch_has("accelerator.memory.mps") else None

    def _unused(self) -> bool:
        return self.is_initialized() is False

    def synchronize(self) -> None:
        import torch

        if not self._unused():
            torch.mps.synchronize()

    def empty_cache(self) -> None:
        import torch

        if not self._unused():
            torch.mps.empty_cache()

    def _figure(self, function: str) -> int | None:
        import torch

        if not self.is_available():
            return None
        return 0 if self._unused() else int(getattr(torch.mps, function)())

    def peak_bytes(self) -> int | None:
        import torch

        if not self.is_available() or not torch_has("accelerator.memory.mps"):
            return None
        return 0 if self._unused() else int(torch.accelerator.max_memory_allocated())

    def reset_peak(self) -> bool:
        import torch

        if not self.is_initialized():
            return False
        torch.accelerator.reset_peak_memory_stats()
        return True

    def recommended_bytes(self) -> int | None:
        import torch

        if not self.is_available() or not torch_has("mps.recommended_max_memory"):
            return None
        return int(torch.mps.recommended_max_memory())

    def max_buffer_bytes(self) -> int | None:
        import torch

        asked = getattr(torch._C, "_mps_maxBufferLength", None)
        if asked is None or not self.is_available():
            return None
        return int(asked()) if torch_has("mps.max_buffer_length") else None

    def set_memory_fraction(self, fraction: float) -> bool:
        import torch

        if not self.is_available():
            return False
        torch.mps.set_per_process_memory_fraction(float(fraction))
        return True

    def name(self) -> str | None:
        import torch

        if not self.is_available() or not torch_has("mps.get_name"):
            return None
        return str(torch.backends.mps.get_name())


class _Accelerator(Backend):
    """Any other backend, as far as ``torch.accelerator`` knows it."""

    def is_available(self) -> bool:
        return current_accelerator() == self.kind.name

    def _ask(self, function: str, *arguments: Any, feature: str = "accelerator.memory") -> Any:
        """Call ``torch.accelerator.<function>`` if the device is the accelerator; None if not."""
        import torch

        if not self.is_available() or not torch_has(feature):
            return None
        try:
            return getattr(torch.accelerator, function)(*arguments)
        except RuntimeError:
            # The allocator is not a DeviceAllocator, which torch asserts instead of reporting.
            return None

    def is_initialized(self) -> bool | None:
        import torch

        asked = getattr(torch._C, "_accelerator_isAllocatorInitialized", None)
        if not self.is_available():
            return False
        try:
            return bool(asked()) if asked is not None else None
        except RuntimeError:
            return None

    def synchronize(self) -> None:
        self._ask("synchronize", self.device, feature="accelerator")

    def empty_cache(self) -> None:
        self._ask("empty_cache")

    def _figure(self, function: str) -> int | None:
        found = self._ask(function, self.device)
        return None if found is None else int(found)

    def reset_peak(self) -> bool:
        self._ask("reset_peak_memory_stats", self.device)
        return self.is_available() and torch_has("accelerator.memory")

    def _info(self, place: int) -> int | None:
        found = self._ask("get_memory_info", self.device, feature="accelerator.get_memory_info")
        return None if found is None else int(found[place])

    def total_bytes(self) -> int | None:
        return self._info(1)

    def free_bytes(self) -> int | None:
        return self._info(0)


APIS: dict[Api, Callable[[DeviceLike, Kind], Backend]] = {
    Api.NONE: Backend,
    Api.MODULE: _Module,
    Api.MPS: _Mps,
    Api.ACCELERATOR: _Accelerator,
}
