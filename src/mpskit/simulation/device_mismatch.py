"""What a Mac says when tensors of two devices meet in one operator.

The code generated for MPS checks no devices (torchgen writes those checks for CUDA only), so the
text is that of whatever notices first: TensorIterator in pointwise operators, a check of the
kernel's own, or the MPSGraph placeholder that finds a tensor without a Metal buffer. Sources: the
pytorch files named at each text, and for ``mm`` DanielAvdar/tabnet#269, for ``linear``
Shakker-Labs/ComfyUI-IPAdapter-Flux#13, for ``cat`` callummcdougall/ARENA_2.0#21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpskit.simulation import messages, mixes

__all__ = ["check_linear", "check_mix"]

# Is this tensor on the simulated device?
Has = Callable[[torch.Tensor], bool]

_TWO_DEVICES = (
    "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!"
)
_ITERATED = frozenset(
    {"aten::cat", "aten::stack", "aten::isclose", "aten::allclose", "aten::nll_loss_forward"}
)
# Blas: the kernel's name as it stands in LinearAlgebra.mm -> its arguments in torch's order.
_BLAS = {
    "aten::mm": ("mm", ("mat1", "mat2"), 1),
    "aten::addmm": ("addmm_out_mps_impl", ("self", "mat1", "mat2"), 1),
}
_LINEAR = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex32}
)
_TYPES = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}


def check_mix(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], has: Has) -> None:
    """Raise torch's error if an argument is on the CPU that may not be.

    Raises:
        RuntimeError: with the text that a Mac's torch has.
    """
    for position, name, tensor in _on_cpu(func, args, kwargs, has):
        if not mixes.allowed(func, name):
            raise RuntimeError(_text(func, position, name, tensor))


def check_linear(has: Has, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what ``F.linear`` raises on MPS, where it has a kernel of its own (Linear.mm).

    The CPU's linear is ``t`` and ``addmm`` by the time an operator is dispatched.

    Raises:
        RuntimeError: with the text that a Mac's torch has.
    """
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
    on_mac = {name: has(tensor) for name, tensor in tensors.items()}
    if not any(on_mac.values()):
        return
    for name, tensor in tensors.items():
        if name != "bias" and tensor.dtype not in _LINEAR:
            kind = "inputs" if name == "input" else "weights"
            raise RuntimeError(f"MPS device does not support linear for non-float {kind}")
        if not on_mac[name]:
            raise RuntimeError(f"Tensor for argument {name} is on cpu but expected on mps")


def convolution_text(kind: torch.dtype, *, source_on_mac: bool) -> str:
    """Return the text of the check in Convolution.cpp that comes before any MPS code."""
    name = _TYPES.get(kind, "Float")
    on_mac, on_cpu = f"MPS{name}Type", f"torch.{name}Tensor"
    source, weight = (on_mac, on_cpu) if source_on_mac else (on_cpu, on_mac)
    tail = (
        ""
        if source_on_mac
        else (" or input should be a MKLDNN tensor and weight is a dense tensor")
    )
    return f"Input type ({source}) and weight type ({weight}) should be the same{tail}"


def _on_cpu(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], has: Has
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Yield position, name and tensor of each argument that holds a CPU tensor with dimensions."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for position, name in enumerate(names):
        value = given.get(name)
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, torch.Tensor) and part.dim() and not has(part):
                yield position, name, part


def _text(func: Any, position: int, name: str, tensor: torch.Tensor) -> str:
    operator = func._schema.name
    if operator in _BLAS:
        kernel, names, first = _BLAS[operator]
        number = names.index(names[position]) + first
        return (
            f"Tensor for argument #{number} '{names[position]}' is on CPU, but expected it to be "
            f"on GPU (while checking arguments for {kernel})"
        )
    if operator == "aten::convolution" and name in {"input", "weight"}:
        return convolution_text(tensor.dtype, source_on_mac=name == "weight")
    if operator.startswith("aten::masked_fill") and name == "mask":
        return (
            "expected self and mask to be on the same device, but got mask on cpu and self on mps:0"
        )
    if torch.Tag.pointwise in func.tags or operator in _ITERATED:
        return _TWO_DEVICES
    return messages.placeholder_storage()
