"""Autograd on the simulated device: its engine sees only CPU tensors.

Patched here: the check of the first gradients, each node's device, and Python code it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import Simulation
from mpskit.simulation.functions import FunctionMode
from mpskit.simulation.tags import Tags

__all__ = ["install", "runs_on_mac"]


def install(simulation: Simulation, patches: Patches) -> None:
    """Patch the check of the first gradients, nodes' devices, and Python code in the engine."""
    checked = _checked(simulation, torch.autograd.graph._engine_run_backward)
    patches.set(torch.autograd.graph, "_engine_run_backward", checked)
    patches.set(torch.autograd, "_engine_run_backward", checked)
    original = torch.autograd.graph.saved_tensors_hooks.__init__

    def initialise(self: Any, pack_hook: Any, unpack_hook: Any) -> None:
        original(self, _outside(simulation, pack_hook), _outside(simulation, unpack_hook))

    patches.set(torch.autograd.graph.saved_tensors_hooks, "__init__", initialise)
    apply: Any = vars(torch.autograd.Function)["apply"]

    def remembering(cls: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = apply.__get__(None, cls)(*args, **kwargs)
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            if isinstance(output, torch.Tensor) and output.grad_fn is not None:
                _outputs_of(output.grad_fn, simulation.tags)[output.output_nr] = output.is_mps
        return outputs

    patches.set(torch.autograd.Function, "apply", classmethod(remembering))
    for name in ("apply", "apply_boxed"):  # the second is in newer torch only
        backward = vars(BackwardCFunction).get(name)
        if backward is not None:
            patches.set(BackwardCFunction, name, _backward(simulation, backward))


def runs_on_mac(tags: Tags, node: Any) -> bool:
    """Return whether a node's backward runs on the simulated device; False without a node.

    A node is on the device of its inputs, which are the outputs of the nodes behind it: only an
    ``autograd.Function`` may change the device, and each records its outputs' devices. So the
    search goes back to one of those or to a leaf and caches the answer in the nodes on its path,
    which keeps the cost of a whole backward linear in its nodes.
    """
    way: list[dict[int | None, bool]] = []
    on_mac, position = False, None
    while node is not None:
        if hasattr(node, "variable"):  # AccumulateGrad
            on_mac = tags.has(node.variable)
            break
        known = _outputs_of(node, tags)
        if known:
            on_mac = known.get(position, any(known.values()))
            break
        way.append(known)
        edges = (edge for edge in node.next_functions if edge[0] is not None)
        node, position = next(edges, (None, None))
    for known in way:
        known[None] = on_mac
    return on_mac


def _outputs_of(node: Any, tags: Tags) -> dict[int | None, bool]:
    """Return which outputs of a node are on the simulated device; None stands for all of them.

    Torch keeps ``metadata`` for as long as the node lives.
    """
    outputs: dict[int | None, bool] = node.metadata.setdefault(tags, {})
    return outputs


def _outside(simulation: Simulation, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the hook with the function mode on and no call under way.

    The hook may outlive the simulation, in a graph that still waits for its backward.
    """

    def call(value: Any) -> Any:
        if simulation.closed:
            return hook(value)
        return _called(simulation, hook, value)

    return call


def _backward(simulation: Simulation, backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the engine's call of an ``autograd.Function`` with the function mode on.

    The engine runs in a handler of the mode, so the mode is off there. It has to be, because the
    engine's C++ nodes call operators whose handler queries tensors.
    """

    def apply(self: Any, *gradients: Any) -> Any:
        return _called(simulation, backward, self, *gradients)

    return apply


def _checked(simulation: Simulation, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call of the engine with its device check made before, on simulated devices."""

    def run(outputs: Any, gradients: Any, *args: Any, **kwargs: Any) -> Any:
        for index, (output, gradient) in enumerate(zip(outputs, gradients, strict=False)):
            if not isinstance(output, torch.Tensor) or gradient is None or not gradient.dim():
                continue
            if output.device != gradient.device:
                text = (
                    f"invalid gradient at index {index} - expected device {output.device} but got "
                    f"{gradient.device}"
                )
                simulation.refuse(RuntimeError(text), "backward")
        state = simulation.state()
        before, state.call = state.call, None
        try:
            return original(outputs, gradients, *args, **kwargs)
        finally:
            state.call = before

    return run


def _called(simulation: Simulation, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call something with the function mode on and no call under way."""
    state = simulation.state()
    before, state.call = state.call, None
    try:
        with FunctionMode(simulation, state):
            return function(*args, **kwargs)
    finally:
        state.call = before
