"""What follows from unknown floats being finite: ``isnan(loss)`` is False before any is computed.

A tensor made of such answers holds one number everywhere. It is kept by storage, so that views of
it are known too, and followed through the operators that checks are written with.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["CHECKS", "number_everywhere"]

Number = bool | int | float
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
_NOT_FINITE = frozenset({"isnan", "isinf", "isposinf", "isneginf"})
_AND = frozenset({"logical_and", "bitwise_and", "mul"})
_OR = frozenset({"logical_or", "bitwise_or"})
_NOT = frozenset({"logical_not", "bitwise_not"})
_LOGICAL = _AND | _OR | _NOT
_SAME = frozenset({"clone", "_to_copy", "max", "min", "amax", "amin"})
_TRUTH = frozenset({"any", "all", "_is_any_true", "_is_all_true"})
# The operators that `number_everywhere` knows.
CHECKS = _NOT_FINITE | _LOGICAL | _SAME | _TRUTH | _COMPARED.keys() | {"sum"}


def number_everywhere(
    name: str, args: Sequence[Any], result: torch.Tensor, of: Callable[[Any], Number | None]
) -> Number | None:
    """Return the number that every element of an operator's result is, if floats are finite.

    Args:
        name: the operator.
        args: its positional arguments.
        result: what it returns.
        of: the number that every element of an argument is, or None.
    """
    if name in _NOT_FINITE:
        return False
    if name in _COMPARED:
        return _compared(name, args, of)
    source: torch.Tensor = args[0]
    if name in _LOGICAL and result.dtype is not torch.bool:
        return None
    if name in _AND | _OR:
        return _joined([of(value) for value in args[:2]], name in _OR)
    first = of(source)
    if first is None:
        return None
    if name in _NOT:
        return not first
    if name in _TRUTH:
        return bool(first)
    return first * (source.numel() // max(result.numel(), 1)) if name == "sum" else first


def _compared(name: str, args: Sequence[Any], of: Callable[[Any], Number | None]) -> bool | None:
    one, other = args[:2]
    number = of(other)
    if isinstance(other, torch.Tensor) and number is None:
        return name in {"eq", "le", "ge"} if _are_one(one, other) else None
    found = of(one)
    if found is not None and number is not None:
        return _COMPARED[name](found, number)
    if isinstance(number, float) and not math.isfinite(number):
        return _COMPARED[name](0.0, number)  # as for any finite number
    return None


def _are_one(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two arguments are the same numbers in memory: ``x != x`` asks for NaN."""
    layouts = [(t.storage_offset(), t.shape, t.stride()) for t in (one, other)]
    shared = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    return shared and layouts[0] == layouts[1]


def _joined(numbers: Sequence[Number | None], decisive: bool) -> bool | None:
    """Return ``and`` or ``or`` of what is partly unknown: one decisive answer is enough."""
    if any(number is not None and bool(number) is decisive for number in numbers):
        return decisive
    return None if None in numbers else not decisive
