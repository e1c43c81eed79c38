"""Autocast on the target: CPU tensors know nothing of it, so the casts are made here.

By the same table and the same code as the simulated Mac's. CUDA's lists differ from MPS's in few
operators (3-D convolutions run in half precision there); they are taken to be the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mpskit.simulation.autocast import Autocast

__all__ = ["Casting"]


class _Everything:
    """Stands for the tags of a simulation: every tensor is on the target."""

    @staticmethod
    def has(_: torch.Tensor) -> bool:
        return True


class _Mode(TorchFunctionMode):
    def __init__(self, autocast: Autocast) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("mps"):
            args, kwargs = self._autocast.apply(func, args, kwargs)
        return func(*args, **kwargs)


class Casting:
    """One function mode for as long as any autocast region of the target is open."""

    def __init__(self) -> None:
        stand_in: Any = _Everything()
        self._autocast = Autocast(stand_in)
        self._modes: list[Any] = []

    def start(self) -> None:
        """Enter a region; only the outermost installs the mode."""
        mode: Any = _Mode(self._autocast)
        if not self._modes:
            mode.__enter__()
        self._modes.append(mode)

    def stop(self) -> None:
        """Leave a region; the copies of weights live until the outermost ends."""
        mode = self._modes.pop()
        if not self._modes:
            self._autocast.casts.clear()
            mode.__exit__(None, None, None)
