"""Moves between the CPU and the simulated device, with gradients that move back."""

from __future__ import annotations

from typing import Any

import torch

from mpskit.simulation.core import CPU, MPS, Simulation

__all__ = ["move"]

_to_copy = torch.ops.aten._to_copy.default


def move(
    simulation: Simulation,
    tensor: torch.Tensor,
    target: torch.device,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """Return a copy on the other device; the gradient comes back to this one."""
    if tensor.requires_grad and torch.is_grad_enabled():
        moved: torch.Tensor = _Move.apply(tensor, simulation, target, dtype, memory_format)  # type: ignore[no-untyped-call]
        return moved
    return _copy(simulation, tensor, target, dtype, memory_format)


def _copy(
    simulation: Simulation,
    tensor: torch.Tensor,
    target: torch.device,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format | None,
) -> torch.Tensor:
    state = simulation.state()
    state.target = target
    try:
        # A subclass decides about .to(), not about the copy below it (UninitializedParameter).
        with torch._C.DisableTorchFunctionSubclass():
            copy: torch.Tensor = _to_copy(tensor, dtype=dtype, memory_format=memory_format)
    finally:
        state.target = None
    return copy


class _Move(torch.autograd.Function):
    """Torch sees a copy from CPU to CPU, so the way back has to be told."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        simulation: Simulation,
        target: torch.device,
        dtype: torch.dtype | None,
        memory_format: torch.memory_format | None,
    ) -> torch.Tensor:
        ctx.simulation = simulation
        ctx.origin = MPS if target.type == "cpu" else CPU
        ctx.dtype = tensor.dtype
        return _copy(simulation, tensor, target, dtype, memory_format)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = move(ctx.simulation, gradients[0], ctx.origin, dtype=ctx.dtype)
        return gradient, None, None, None, None
