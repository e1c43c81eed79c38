"""Charges operators whose CPU kernel stands in for another path on a Mac as that path."""

from __future__ import annotations

from typing import Any

import torch

from mpskit.allocator.paths import OPERATORS, mps_charge
from mpskit.simulation.core import Simulation

__all__ = ["OPERATORS", "charge"]


def charge(simulation: Simulation, name: str, args: tuple[Any, ...], result: Any) -> None:
    """Tag an operator's results with what the Mac's path keeps, and take its scratch for a moment.

    Raises:
        RuntimeError: the simulated memory is full; torch's own text.
    """
    grad = torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in args
    )
    path = mps_charge(name, args, grad=grad)
    if path is None:
        return
    results = (result,) if isinstance(result, torch.Tensor) else result
    for position, part in enumerate(results):
        if isinstance(part, torch.Tensor):
            simulation.tags.add(part, path.results.get(position))
    block = simulation.memory.charge(path.scratch_bytes)
    if block is not None:
        simulation.memory.release(block)
