"""What each backend of torch can be asked about memory: the classes behind the facade.

One small class each, and :data:`BACKENDS` as their table. A method returns None (or False) where
the backend, or the installed torch, has no such figure; names that came with a torch release are
looked up in ``mpskit.backends.versions``, and names that a build may lack are looked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from mpskit.backends.versions import has, torch_version

if TYPE_CHECKING:
    import torch

__all__ = ["BACKENDS", "Accelerator", "Backend", "DeviceLike", "Module", "Mps", "torch_has"]

DeviceLike: TypeAlias = "torch.device | str"


def torch_has(feature: str) -> bool:
    """Return whether the installed torch has a feature of the version table."""
    version = torch_version()
    return version is not None and has(feature, version)


class Backend:
    """A backend that has no allocator of its own (the CPU): every figure is lacking.

    Methods are named after the functions of ``mpskit.backends.facade``, which documents them.
    """

    def __init__(self, device: DeviceLike) -> None:
        self._device = device
        self._kind = device.partition(":")[0] if isinstance(device, str) else device.type

    def is_initialized(self) -> bool | None:
        return True

    def synchronize(self) -> None:
        """Wait for the device's work."""

    def empty_cache(self) -> None:
        """Give unused memory back."""

    def allocated(self) -> int | None:
        return None

    def reserved(self) -> int | None:
        return None

    def peak(self) -> int | None:
        return None

    def reset_peak(self) -> bool:
        return False

    def total(self) -> int | None:
        return None

    def free(self) -> int | None:
        return None

    def recommended(self) -> int | None:
        return None

    def max_buffer(self) -> int | None:
        return None

    def fraction(self) -> float | None:
        return None

    def set_fraction(self, fraction: float) -> bool:  # noqa: ARG002 - nothing to cap
        return False

    def name(self) -> str | None:
        return None


class Module(Backend):
    """``torch.cuda`` (ROCm too) and ``torch.xpu``, which share their names."""

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call ``torch.<kind>.<function>``; None where this torch has no such name."""
        import torch

        found = getattr(getattr(torch, self._kind, None), function, None)
        return found(*arguments) if found is not None else None

    def is_initialized(self) -> bool | None:
        return bool(self._ask("is_initialized"))

    def synchronize(self) -> None:
        if self.is_initialized():
            self._ask("synchronize", self._device)

    def empty_cache(self) -> None:
        # torch.<kind>.empty_cache() does nothing before the backend's first use.
        self._ask("empty_cache")

    def allocated(self) -> int | None:
        return self._figure("memory_allocated")

    def reserved(self) -> int | None:
        return self._figure("memory_reserved")

    def peak(self) -> int | None:
        return self._figure("max_memory_allocated")

    def _figure(self, function: str) -> int | None:
        if not self.is_initialized():
            return 0 if self._available() else None
        found = self._ask(function, self._device)
        return None if found is None else int(found)

    def reset_peak(self) -> bool:
        if not self.is_initialized():
            return False
        self._ask("reset_peak_memory_stats", self._device)
        return True

    def total(self) -> int | None:
        if not self._available():
            return None
        return int(self._ask("get_device_properties", self._device).total_memory)

    def free(self) -> int | None:
        found = self._ask("mem_get_info", self._device) if self._available() else None
        return None if found is None else int(found[0])

    def fraction(self) -> float | None:
        name = "get_per_process_memory_fraction"
        found = self._ask(name, self._device) if self.is_initialized() else None
        return None if found is None else float(found)

    def set_fraction(self, fraction: float) -> bool:
        import torch

        name = "set_per_process_memory_fraction"
        if not self._available() or not hasattr(getattr(torch, self._kind), name):
            return False
        self._ask(name, fraction, self._device)
        return True

    def name(self) -> str | None:
        return str(self._ask("get_device_name", self._device)) if self._available() else None

    def _available(self) -> bool:
        return bool(self._ask("is_available"))


class Mps(Backend):
    """``torch.mps``, and ``torch.accelerator`` for what only that has (from 2.13)."""

    def is_initialized(self) -> bool | None:
        import torch

        if not torch.backends.mps.is_available():
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

    def allocated(self) -> int | None:
        return self._figure("current_allocated_memory")

    def reserved(self) -> int | None:
        return self._figure("driver_allocated_memory")

    def _figure(self, function: str) -> int | None:
        import torch

        if not torch.backends.mps.is_available():
            return None
        return 0 if self._unused() else int(getattr(torch.mps, function)())

    def peak(self) -> int | None:
        import torch

        if not torch.backends.mps.is_available() or not torch_has("accelerator.memory.mps"):
            return None
        return 0 if self._unused() else int(torch.accelerator.max_memory_allocated())

    def reset_peak(self) -> bool:
        import torch

        if not self.is_initialized():
            return False
        torch.accelerator.reset_peak_memory_stats()
        return True

    def recommended(self) -> int | None:
        import torch

        if not torch.backends.mps.is_available() or not torch_has("mps.recommended_max_memory"):
            return None
        return int(torch.mps.recommended_max_memory())

    def max_buffer(self) -> int | None:
        import torch

        asked = getattr(torch._C, "_mps_maxBufferLength", None)
        if asked is None or not torch.backends.mps.is_available():
            return None
        return int(asked()) if torch_has("mps.max_buffer_length") else None

    def set_fraction(self, fraction: float) -> bool:
        import torch

        if not torch.backends.mps.is_available():
            return False
        torch.mps.set_per_process_memory_fraction(float(fraction))
        return True

    def name(self) -> str | None:
        import torch

        if not torch.backends.mps.is_available() or not torch_has("mps.get_name"):
            return None
        return str(torch.backends.mps.get_name())


class Accelerator(Backend):
    """Any other backend, as far as ``torch.accelerator`` knows it."""

    def _current(self) -> bool:
        import torch

        if not torch_has("accelerator"):
            return False
        found = torch.accelerator.current_accelerator()
        return found is not None and found.type == self._kind

    def _ask(self, function: str, *arguments: Any, feature: str = "accelerator.memory") -> Any:
        """Call ``torch.accelerator.<function>`` if the device is the accelerator; None if not."""
        import torch

        if not self._current() or not torch_has(feature):
            return None
        try:
            return getattr(torch.accelerator, function)(*arguments)
        except RuntimeError:
            # An allocator that is no DeviceAllocator: torch asserts instead of saying so.
            return None

    def is_initialized(self) -> bool | None:
        import torch

        asked = getattr(torch._C, "_accelerator_isAllocatorInitialized", None)
        if not self._current():
            return False
        try:
            return bool(asked()) if asked is not None else None
        except RuntimeError:
            return None

    def synchronize(self) -> None:
        self._ask("synchronize", self._device, feature="accelerator")

    def empty_cache(self) -> None:
        self._ask("empty_cache")

    def allocated(self) -> int | None:
        return self._figure("memory_allocated")

    def reserved(self) -> int | None:
        return self._figure("memory_reserved")

    def peak(self) -> int | None:
        return self._figure("max_memory_allocated")

    def _figure(self, function: str) -> int | None:
        found = self._ask(function, self._device)
        return None if found is None else int(found)

    def reset_peak(self) -> bool:
        self._ask("reset_peak_memory_stats", self._device)
        return self._current() and torch_has("accelerator.memory")

    def total(self) -> int | None:
        found = self._ask("get_memory_info", self._device, feature="accelerator.get_memory_info")
        return None if found is None else int(found[1])

    def free(self) -> int | None:
        found = self._ask("get_memory_info", self._device, feature="accelerator.get_memory_info")
        return None if found is None else int(found[0])


BACKENDS: dict[str, type[Backend]] = {
    "cpu": Backend,
    "meta": Backend,
    "cuda": Module,
    "xpu": Module,
    "mps": Mps,
}
