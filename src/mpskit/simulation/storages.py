"""Storages on the simulated device: device, resizing, copies, and sharing with processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import CPU, MPS, Simulation, asks_mps
from mpskit.simulation.loader import SHARE_ERROR

__all__ = ["install"]

_Storage = torch.UntypedStorage
_raw_storage: Any = torch._C.StorageBase


def install(simulation: Simulation, patches: Patches) -> None:
    """Put the simulated attributes on the storage class."""
    tags = simulation.tags

    def device(self: torch.UntypedStorage) -> torch.device:
        if self._cdata in tags.live:
            return MPS
        raw: torch.device = _raw_storage.device.__get__(self)
        return raw

    def resize_(self: torch.UntypedStorage, size: int) -> Any:
        result = _raw_storage.resize_(self, size)
        tags.recharge(self)
        return result

    patches.set(_Storage, "__new__", _maker(simulation))
    patches.set(_Storage, "device", property(device))
    patches.set(_Storage, "resize_", resize_)
    for name, value in _copies(simulation).items():
        patches.set(_Storage, name, value)
    for name in ("_share_filename_cpu_", "_share_fd_cpu_"):
        patches.set(_Storage, name, _sharer(simulation, vars(_Storage)[name]))


def _maker(simulation: Simulation) -> Callable[..., Any]:
    def make(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if not asks_mps(device):
            given = kwargs if device is None else kwargs | {"device": device}
            return _raw_storage.__new__(cls, *args, **given)
        made: torch.UntypedStorage = _raw_storage.__new__(cls, *args, **kwargs)
        simulation.tags.add_storage(made)
        return made

    return make


def _copies(simulation: Simulation) -> dict[str, Callable[..., Any]]:
    tags = simulation.tags

    def copy_to_mac(self: torch.UntypedStorage) -> torch.UntypedStorage:
        copy: torch.UntypedStorage = _raw_storage.__new__(_Storage, self.nbytes())
        tags.add_storage(copy)
        copy.copy_(self, False)
        return copy

    def mps(self: torch.UntypedStorage) -> Any:
        return self if self._cdata in tags.live else copy_to_mac(self)

    def clone(self: torch.UntypedStorage) -> Any:
        return copy_to_mac(self) if self._cdata in tags.live else _clone(self)

    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        if asks_mps(device):
            return mps(self)
        if torch.device(device) == CPU:
            return self.cpu()
        return _to(self, device=device, non_blocking=non_blocking)

    return {"mps": mps, "clone": clone, "to": to}


_clone: Any = torch.storage._StorageBase.clone
_to: Any = torch.storage._StorageBase.to


def _sharer(simulation: Simulation, original: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to share an mps tensor with another process, as a Mac does."""

    def share(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        if self._cdata in simulation.tags.live:
            raise RuntimeError(SHARE_ERROR)
        return original(self, *args, **kwargs)

    return share
