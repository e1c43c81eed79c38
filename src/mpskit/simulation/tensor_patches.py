"""Layer 1: attributes of ``torch.Tensor`` and of its storage, true in every thread and mode."""

from __future__ import annotations

from typing import Any

import torch

from mpskit.simulation.core import CPU, MPS, Simulation, asks_mps
from mpskit.simulation.patches import Patches
from mpskit.simulation.transfer import move

__all__ = ["install"]

_base = torch._C.TensorBase
_raw_device = _base.device.__get__  # type: ignore[attr-defined]
_storage_of = _base.untyped_storage


def install(simulation: Simulation, patches: Patches) -> None:
    """Put the simulated attributes on the tensor class."""
    patches.set(torch.Tensor, "device", property(_device_getter(simulation)))
    patches.set(torch.Tensor, "is_mps", property(simulation.tags.has))
    patches.set(torch.Tensor, "is_cpu", property(lambda self: self.device.type == "cpu"))
    patches.set(torch.Tensor, "get_device", _get_device)
    patches.set(torch.Tensor, "to", _mover(simulation))
    patches.set(torch.Tensor, "cpu", _to_cpu)


def _device_getter(simulation: Simulation) -> Any:
    live, has = simulation.tags.live, simulation.tags.has

    def device(self: torch.Tensor) -> torch.device:
        raw: torch.device = _raw_device(self)
        if raw.type != "cpu":
            return raw
        try:
            tagged = _storage_of(self)._cdata in live
        except (NotImplementedError, RuntimeError):
            tagged = has(self)
        return MPS if tagged else raw

    return device


def _get_device(self: torch.Tensor) -> int:
    index = self.device.index
    return -1 if index is None else index


def _to_cpu(self: torch.Tensor, memory_format: Any = torch.preserve_format) -> torch.Tensor:
    return self.to(CPU, memory_format=memory_format)


def _mover(simulation: Simulation) -> Any:
    raw = _base.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, options = _parse(args, kwargs)
        if device is None or _raw_device(self).type != "cpu":
            return raw(self, *args, **kwargs)
        on_mac = simulation.tags.has(self)
        if asks_mps(device) == on_mac and device.type in {"cpu", "mps"}:
            return raw(self, dtype=dtype, **options)
        if device.type not in {"cpu", "mps"}:
            return raw(self, *args, **kwargs)
        return move(simulation, self, device, dtype=dtype, memory_format=options.get("memory_format"))

    return to


def _parse(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, torch.dtype | None, dict[str, Any]]:
    """Return device, dtype and the rest of what ``Tensor.to`` was given."""
    names = ["device", "dtype", "non_blocking", "copy"]
    if args and isinstance(args[0], torch.Tensor):
        other = args[0]
        given = {"device": other.device, "dtype": other.dtype}
        given |= dict(zip(names[2:], args[1:], strict=False)) | kwargs
    elif args and isinstance(args[0], torch.dtype):
        given = dict(zip(names[1:], args, strict=False)) | kwargs
    else:
        given = dict(zip(names, args, strict=False)) | kwargs
    other = given.pop("other", None)
    if other is not None:
        given |= {"device": other.device, "dtype": other.dtype}
    device, dtype = given.pop("device", None), given.pop("dtype", None)
    return (None if device is None else torch.device(device)), dtype, given
