"""What a batch looks like, without its data."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import shown, wrong_type
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["TensorSpec", "map_tensors", "parse_spec"]

_SIZES = r"(?:\d{1,18}\s*(?:,\s*\d{1,18}\s*)*,?\s*)?"
_SPEC = re.compile(
    rf"\s*([a-z]+[0-9]*(?:_[a-z0-9]+)?)\s*\[\s*({_SIZES})\]\s*(?:=\s*(-?\d{{1,18}}))?\s*", re.ASCII
)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor's shape and dtype.

    Attributes:
        shape: sizes of the dimensions.
        dtype: a ``torch.dtype`` or its name, ``"float32"`` when not given.
        fill: what an integer or boolean tensor is taken to hold everywhere (1: a mask that masks
            nothing, a class that exists). Floats hold nothing.

    Raises:
        ArgumentTypeError: the shape is no sequence, or ``fill`` no int.
        ArgumentError: a size is negative or not an integer, there is no such dtype, or its
            bytes are more than a 64-bit integer takes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str = "float32"
    fill: int = 1

    def __post_init__(self) -> None:
        shape: Any = self.shape
        fill: Any = self.fill
        if isinstance(shape, str) or not isinstance(shape, Sequence):
            raise wrong_type("shape", "a sequence of ints such as (1, 512)", shape)
        if not isinstance(fill, int):
            raise wrong_type("fill", "an int", fill)
        sizes = tuple(shape)
        if any(type(n) is not int or n < 0 for n in sizes):
            raise ArgumentError(f"a shape is non-negative integers, not {sizes}", given=self.shape)
        object.__setattr__(self, "shape", sizes)
        if math.prod(sizes) * self.torch_dtype().itemsize > sys.maxsize:
            raise ArgumentError("a tensor of that shape is more than torch can count", given=sizes)

    def torch_dtype(self) -> torch.dtype:
        """Return the dtype as torch's own."""
        import torch

        found = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(found, torch.dtype):
            raise ArgumentError(f"torch has no dtype {shown(self.dtype)}", given=self.dtype)
        return found


def parse_spec(text: str) -> TensorSpec:
    """Read ``"int64[1,512]"``, or ``"int64[1,512]=0"`` with what it is filled with.

    Raises:
        ArgumentError: it is not of that form.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ArgumentError(
            f"{shown(text)} is no tensor: write dtype[sizes], such as int64[1,512] or "
            "float32[8,3,224]",
            given=text,
        )
    sizes = tuple(int(part) for part in match[2].split(",") if part.strip())
    return TensorSpec(sizes, match[1], fill=int(match[3]) if match[3] else 1)


def map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return ``value`` with every tensor and ``TensorSpec`` in it changed.

    Mappings (also ``BatchEncoding``) become dicts; lists, tuples, named tuples and dataclasses
    keep their type; anything else stays as it is.
    """
    import torch

    def inside(item: Any) -> Any:
        return map_tensors(item, change)

    if isinstance(value, torch.Tensor | TensorSpec):
        return change(value)
    if isinstance(value, Mapping):
        return {key: inside(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(inside, value))
    if isinstance(value, list | tuple):
        return type(value)(map(inside, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{n: inside(getattr(value, n)) for n in names})
    return value
