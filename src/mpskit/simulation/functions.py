"""Layer 3, the function mode: what would fail in C++ before any dispatch, and autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mpskit.simulation.autocast import is_on
from mpskit.simulation.constructors import CONSTRUCTORS
from mpskit.simulation.core import Simulation, ThreadState
from mpskit.simulation.mixing import check_linear

__all__ = ["FunctionMode"]

_LINEAR = torch._C._nn.linear


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
        state = self._state
        before = state.call
        state.call = (args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            state.call = before
