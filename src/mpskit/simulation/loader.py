"""What a Mac does differently around DataLoader: spawned workers, no pinned memory."""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch

from mpskit.simulation.core import Simulation
from mpskit.simulation.patches import Patches

__all__ = ["PIN_ERROR", "install"]

# pytorch#86060; the wording is that of the check in StorageImpl's set_storage.
PIN_ERROR = (
    'Attempted to set the storage of a tensor on device "cpu" to a storage on different device '
    '"mps:0".  This is no longer allowed; the devices must match.'
)


def install(simulation: Simulation, patches: Patches) -> None:
    """Start processes by spawn, and treat pinned memory as this torch does on a Mac."""
    context: Any = multiprocessing.context._default_context  # type: ignore[attr-defined]
    patches.set(context, "_actual_context", multiprocessing.get_context("spawn"))
    patches.set(torch.Tensor, "pin_memory", _pinner(simulation))


def _pinner(simulation: Simulation) -> Any:
    def pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
        if simulation.tags.has(self):
            raise RuntimeError(
                f"cannot pin '{self.type()}' only dense CPU tensors can be pinned"
            )
        if not simulation.pins:
            raise RuntimeError(PIN_ERROR)
        return self.clone()

    return pin_memory
