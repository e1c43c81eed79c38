"""Functions that make a tensor from Python data: C++ refuses ``device="mps"`` in them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _device

from mpskit.simulation.core import MPS, Simulation, asks_mps
from mpskit.simulation.transfer import move

__all__ = ["CONSTRUCTORS"]

Constructor = Callable[[Simulation, Any, tuple[Any, ...], dict[str, Any]], Any]


def _build(
    simulation: Simulation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    device = kwargs.get("device") or _device.CURRENT_DEVICE
    if not asks_mps(device):
        return func(*args, **kwargs)
    requires_grad = kwargs.get("requires_grad", False)
    made = func(*args, **kwargs | {"device": "cpu", "requires_grad": False})
    moved = move(simulation, made, MPS)
    return moved.requires_grad_() if requires_grad else moved


CONSTRUCTORS: dict[Any, Constructor] = dict.fromkeys(
    (torch.tensor, torch.as_tensor, torch.asarray), _build
)
