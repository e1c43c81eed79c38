"""Replacements for MPS kernels where the CPU has none, or one with other results.

Each takes CPU tensors in the place of mps ones and returns what the MPS kernel would, with its
checks. The file named at each is pytorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["KERNELS"]

_SUMMED = frozenset({torch.float32, torch.float16, torch.int32})
_GROUPS = (32, 64, 128, 256)
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


def _bincount(
    self: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0
) -> torch.Tensor:
    """Sum weights in their own dtype, other than three of them in int32 (SummaryOps.mm)."""
    if weights is None:
        return torch.bincount(self, minlength=minlength)
    dtype = weights.dtype if weights.dtype in _SUMMED else torch.int32
    counts = torch.bincount(self, weights.to(dtype=dtype), minlength)
    return counts.to(dtype=dtype) if self.numel() else counts


def _narrow_copy(self: torch.Tensor, dim: int, start: int, length: int) -> torch.Tensor:
    """Compose it from two operators (narrow_copy_dense_symint in TensorShape.cpp)."""
    return self.narrow(dim, start, length).clone(memory_format=torch.contiguous_format)


def _pack_int4(self: torch.Tensor, innerKTiles: int) -> torch.Tensor:  # noqa: N803
    """Swap the two numbers of each byte; only the shape is CUDA's (operations/Quantized.mm)."""
    name = "_convert_weight_to_int4pack_mps"
    _check(self.dim() == 2, f"{name} : expect weight to be 2D tensor.")
    _check(self.dtype == torch.uint8, f"{name} : expect weight to be kByte.")
    text = f"{name} : innerKTiles need to be 2, 4, or 8, got {innerKTiles}"
    _check(innerKTiles in (2, 4, 8), text)
    rows, half = self.shape
    swapped = ((self << 4) | (self >> 4)).reshape(-1)
    shape = (rows // 8, 2 * half // (16 * innerKTiles), 32, innerKTiles // 2)
    return swapped.view(torch.int32).reshape(shape)


def _multiply_int4(
    self: torch.Tensor,
    mat2: torch.Tensor,
    qGroupSize: int,  # noqa: N803 - the schema's name
    qScaleAndZeros: torch.Tensor,  # noqa: N803
) -> torch.Tensor:
    """Multiply by packed weights: each number less 8, scaled, plus its group's zero point."""
    name, rows = "_weight_int4pack_mm_mps", 8 * mat2.shape[0]
    floats = f"{name} : expect A to be either 32-bit or 16-bit float tensor."
    _check(self.dtype in _FLOATS, floats)
    _check(self.is_contiguous(), f"{name} : expect A to be contiguous.")
    _check(self.dim() == 2, f"{name} : expect A to be 2D tensor.")
    _check(mat2.dtype == torch.int32, f"{name} : expect B to be int32 tensor.")
    _check(mat2.is_contiguous(), f"{name} : expect B to be contiguous.")
    _check(mat2.dim() == 4, f"{name} : expect B to 4d tensor.")
    text = f"{name}: expect qGroupSize to be 32, 64, 128 or 256, got {qGroupSize}"
    _check(qGroupSize in _GROUPS, text)
    text = f"{name}: expect qScaleAndZeros to be 3d tensor with sizes [:, {rows}, 2]"
    _check(qScaleAndZeros.dim() == 3 and qScaleAndZeros.shape[1:] == (rows, 2), text)
    packed = mat2.reshape(-1).view(torch.uint8).reshape(rows, -1)
    numbers = torch.stack((packed & 15, packed >> 4), dim=-1).reshape(rows, -1)
    per_column = qScaleAndZeros.float().repeat_interleave(qGroupSize, 0)
    scales, zeros = per_column.permute(2, 1, 0).unbind()
    weights = (numbers.float() - 8) * scales + zeros
    return (self.float() @ weights.t()).to(dtype=self.dtype)


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise RuntimeError(text)


KERNELS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "aten::bincount": _bincount,
        "aten::narrow_copy": _narrow_copy,
        "aten::_convert_weight_to_int4pack": _pack_int4,
        "aten::_weight_int4pack_mm": _multiply_int4,
    }
)
