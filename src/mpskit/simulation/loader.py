"""What a Mac does differently around DataLoader: spawned workers, no pinned memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils import fetch

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import Simulation

__all__ = ["PIN_ERROR", "SHARE_ERROR", "install"]

# StorageSharing.cpp: a Mac shares storages by file name only (pytorch#87688).
SHARE_ERROR = "_share_filename_: only available on CPU"

# pytorch#86060; the wording is that of the check in StorageImpl's set_storage.
PIN_ERROR = (
    'Attempted to set the storage of a tensor on device "cpu" to a storage on different device '
    '"mps:0".  This is no longer allowed; the devices must match.'
)


def install(simulation: Simulation, patches: Patches) -> None:
    """Start processes by spawn, and treat pinned memory as this torch does on a Mac."""
    context: Any = vars(multiprocessing)["context"]._default_context
    patches.set(context, "_actual_context", multiprocessing.get_context("spawn"))
    patches.set(torch.Tensor, "pin_memory", _pinner(simulation))
    for fetcher in (fetch._MapDatasetFetcher, fetch._IterableDatasetFetcher):
        patches.set(fetcher, "fetch", _checked(simulation, fetcher.fetch))


def _checked(simulation: Simulation, original: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse an mps tensor that a worker is about to send.

    A Mac's worker fails in the thread that feeds the queue: it prints this error, and the training
    process hangs. Here the training process gets the error.
    """

    def fetch(self: Any, indices: Any) -> Any:
        batch = original(self, indices)
        if get_worker_info() is not None and _holds_mps(simulation, batch):
            raise RuntimeError(SHARE_ERROR)
        return batch

    return fetch


def _holds_mps(simulation: Simulation, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return simulation.tags.has(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return any(_holds_mps(simulation, part) for part in value)


def _pinner(simulation: Simulation) -> Any:
    def pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:  # noqa: ARG001
        if simulation.tags.has(self):
            raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")
        if not simulation.pins:
            simulation.refuse(RuntimeError(PIN_ERROR), "pin_memory")
        return self.clone()

    return pin_memory
