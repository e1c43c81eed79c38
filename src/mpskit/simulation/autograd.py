"""Saved-tensor hooks and the engine's check of devices, which sees the CPU everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import Simulation
from mpskit.simulation.functions import FunctionMode

__all__ = ["install"]


def install(simulation: Simulation, patches: Patches) -> None:
    """Check the first gradients, and run saved-tensor hooks as calls of their own."""
    checked = _checked(torch.autograd.graph._engine_run_backward)
    patches.set(torch.autograd.graph, "_engine_run_backward", checked)
    patches.set(torch.autograd, "_engine_run_backward", checked)
    original = torch.autograd.graph.saved_tensors_hooks.__init__

    def initialise(self: Any, pack_hook: Any, unpack_hook: Any) -> None:
        original(self, _outside(simulation, pack_hook), _outside(simulation, unpack_hook))

    patches.set(torch.autograd.graph.saved_tensors_hooks, "__init__", initialise)


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


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call of the engine with its device check made before, on simulated devices."""

    def run(outputs: Any, gradients: Any, *args: Any, **kwargs: Any) -> Any:
        for index, (output, gradient) in enumerate(zip(outputs, gradients, strict=False)):
            if not isinstance(output, torch.Tensor) or gradient is None or not gradient.dim():
                continue
            if output.device != gradient.device:
                raise RuntimeError(
                    f"invalid gradient at index {index} - expected device {output.device} but got "
                    f"{gradient.device}"
                )
        return original(outputs, gradients, *args, **kwargs)

    return run
