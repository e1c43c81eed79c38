"""Saved-tensor hooks: Python code that C++ calls in the middle of an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpskit.simulation.core import Simulation
from mpskit.simulation.functions import FunctionMode
from mpskit.simulation.patches import Patches

__all__ = ["install"]


def install(simulation: Simulation, patches: Patches) -> None:
    """Run saved-tensor hooks as calls of their own, not as part of the operator that saves."""
    original = torch.autograd.graph.saved_tensors_hooks.__init__

    def __init__(self: Any, pack_hook: Any, unpack_hook: Any) -> None:
        original(self, _outside(simulation, pack_hook), _outside(simulation, unpack_hook))

    patches.set(torch.autograd.graph.saved_tensors_hooks, "__init__", __init__)


def _outside(simulation: Simulation, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the hook with the function mode on and no call under way.

    The hook may outlive the simulation, in a graph that still waits for its backward.
    """

    def call(value: Any) -> Any:
        if simulation.closed:
            return hook(value)
        state = simulation.state()
        before, state.call = state.call, None
        try:
            with FunctionMode(simulation, state):
                return hook(value)
        finally:
            state.call = before

    return call
