"""Layer 3, the function mode: what would fail in C++ before any dispatch, and autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mpskit.simulation.autocast import is_on
from mpskit.simulation.constructors import CONSTRUCTORS
from mpskit.simulation.core import MPS, Simulation, ThreadState
from mpskit.simulation.device_mismatch import check_linear
from mpskit.simulation.transfer import move

__all__ = ["FunctionMode"]

_LINEAR = torch.nn.functional.linear
_TENSORS: frozenset[Any] = frozenset({torch.Tensor, torch.nn.Parameter})


class FunctionMode(TorchFunctionMode):
    """One thread's function mode; it keeps state, so every thread has its own."""

    def __init__(self, simulation: Simulation, state: ThreadState) -> None:
        super().__init__()
        self._simulation = simulation
        self._state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one C++ function, remembering what it was called with."""
        kwargs = kwargs or {}
        if func in CONSTRUCTORS and not self._simulation.closed:
            return CONSTRUCTORS[func](self._simulation, func, args, kwargs)
        if func is _LINEAR:
            check_linear(self._simulation.tags.has, args, kwargs)
        if is_on():
            args, kwargs = self._simulation.autocast.apply(func, args, kwargs)
        for value in args:
            if type(value) in _TENSORS and value.requires_grad and not value.dim():
                args = self._numbers_moved(args)
                break
        state = self._state
        before = state.call
        state.call = (args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            state.call = before

    def _numbers_moved(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Move CPU numbers that need a gradient, so that it comes back to the CPU.

        Torch's engine does that move on a Mac; here it sees no two devices.
        """
        has = self._simulation.tags.has
        tensors = [value for value in args if type(value) in _TENSORS]
        if not any(has(value) and value.dim() for value in tensors):
            return args
        alone = {id(t) for t in tensors if t.requires_grad and not t.dim() and not has(t)}
        return tuple(
            move(self._simulation, value, MPS) if id(value) in alone else value for value in args
        )
