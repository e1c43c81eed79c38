"""Charges operators' MPS memory beyond their outputs, and checks large factories in advance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mpskit.dispatch.mps_op_memory import Rule
from mpskit.dispatch.op_schema import is_recorded
from mpskit.simulation.core import Simulation
from mpskit.simulation.memory import Memory

__all__ = ["blame", "charge", "foresee"]

# From this size on, a factory's memory is requested before the CPU fills it.
_LARGE = 256 * 1024**2
_CPU_FAILED = re.compile(r"DefaultCPUAllocator: can't allocate memory: .*allocate (\d+) bytes")


def charge(simulation: Simulation, rule: Rule, args: tuple[Any, ...], result: Any) -> None:
    """Charge what MPS keeps for an operator's outputs, and briefly its workspace.

    Raises:
        RuntimeError: the simulated memory is full; torch's own text.
    """
    taken = rule(args, is_recorded(args))
    outputs = (result,) if isinstance(result, torch.Tensor) else result
    for position, part in enumerate(outputs):
        if isinstance(part, torch.Tensor):
            simulation.tags.add(part, taken.outputs.get(position))
    _probe(simulation.memory, taken.workspace_bytes)


def foresee(memory: Memory, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Request a large factory's memory before it runs, because it may not fit.

    Raises:
        RuntimeError: it does not fit on the Mac; torch's own text.
    """
    sizes = next((value for value in args[:2] if type(value) in {list, tuple, torch.Size}), ())
    if len(sizes) and all(type(size) is int for size in sizes):
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        _probe_large(memory, math.prod(sizes) * dtype.itemsize)


def blame(memory: Memory, error: RuntimeError) -> None:
    """Raise the Mac's error in place of the CPU allocator's, if the Mac has no room either.

    Raises:
        RuntimeError: it does not fit on the Mac; torch's own text.
    """
    failed = _CPU_FAILED.search(str(error))
    if failed is not None:
        _probe_large(memory, int(failed[1]))


def _probe_large(memory: Memory, size: int) -> None:
    if size >= _LARGE:
        _probe(memory, size)


def _probe(memory: Memory, size: int) -> None:
    block = memory.charge(size)
    if block is not None:
        memory.release(block)
