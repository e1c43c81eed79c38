"""How a model calls an operator, and the conditions under which a known bug shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["CONDITIONS", "OpUse", "Operand"]


class Operand(NamedTuple):
    """A tensor that an operator gets.

    Attributes:
        shape: its sizes.
        strides: in elements.
        dtype: its name, ``"float32"``.
        itemsize: bytes of an element.
        requires_grad: whether a gradient flows into it.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    itemsize: int
    requires_grad: bool

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Return whether the elements lie as in a fresh tensor."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return self.numel == 0
            expected *= size
        return True

    @property
    def floating(self) -> bool:
        """Return whether it holds floating-point numbers."""
        return "float" in self.dtype


class OpUse(NamedTuple):
    """One way in which a step calls an operator.

    Attributes:
        op: the aten name without overload: ``"linear"``, ``"mm"``.
        operands: by position; None where the argument is no tensor.
        options: arguments that are no tensors, as ``(position or name, value)``.
        training: whether autograd records the call.
        compiled: whether the model was compiled.
    """

    op: str
    operands: tuple[Operand | None, ...]
    options: tuple[tuple[str, Any], ...] = ()
    training: bool = False
    compiled: bool = False

    def operand(self, at: int) -> Operand | None:
        """Return the tensor at a position; None where there is none."""
        return self.operands[at] if at < len(self.operands) else None

    @property
    def tensors(self) -> tuple[Operand, ...]:
        """Return the tensors."""
        return tuple(one for one in self.operands if one is not None)

    def option(self, *names: str) -> Any:
        """Return the first of these options that is given; None without any."""
        given = dict(self.options)
        return next((given[name] for name in names if name in given), None)

    def sizes(self, at: int) -> tuple[int, ...]:
        """Return the shape of the tensor at a position; empty where there is none."""
        found = self.operand(at)
        return found.shape if found is not None else ()


Condition = Callable[[OpUse, Any], bool]

_PRODUCTS = {"mm": 0, "bmm": 0, "matmul": 0, "addmm": 1, "baddbmm": 1}  # where the left factor is


def _non_contiguous(use: OpUse, at: int) -> bool:
    found = use.operand(at)
    return found is not None and not found.contiguous


def _rows(use: OpUse, at: int) -> int:
    return next(iter(use.sizes(at)), 0)


def _inner(use: OpUse) -> int:
    left = use.sizes(_PRODUCTS.get(use.op, 0))
    return left[-1] if left else 0


def _result(use: OpUse) -> int:
    at = _PRODUCTS.get(use.op, 0)
    left, right = use.sizes(at), use.sizes(at + 1)
    return math.prod(left[:-1]) * right[-1] if left and right else 0


def _grouped(use: OpUse) -> bool:
    query, key = use.sizes(0), use.sizes(1)
    return len(query) > 3 and len(key) > 3 and query[-3] != key[-3]


def _dropout(use: OpUse) -> bool:
    """``lstm(input, hx, weights, has_biases, num_layers, dropout, train, ...)``.

    A packed batch has its sizes in second place, and everything after it one place later.
    """
    shift = int(use.operand(1) is not None)
    layers, dropout = use.option(str(4 + shift)), use.option(str(5 + shift))
    return (layers or 0) > 1 and (dropout or 0) > 0


def _bias(use: OpUse) -> bool:
    return use.operand(2) is not None


# name in the table's `when` -> whether a call is like that, given the table's value
CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "non_contiguous": _non_contiguous,
        "rank_from": lambda use, least: len(use.sizes(0)) >= least,
        "batch_from": lambda use, least: _rows(use, 0) >= least,
        "bias": lambda use, wanted: _bias(use) is wanted,
        "inner_from": lambda use, least: _inner(use) >= least,
        "outputs_from": lambda use, least: _rows(use, 1) >= least,
        "kernel_from": lambda use, least: max(use.sizes(1)[2:], default=0) >= least,
        "columns_above": lambda use, most: math.prod(use.sizes(0)[1:]) > most,
        "numel_above": lambda use, most: any(one.numel > most for one in use.tensors),
        "bytes_above": lambda use, most: any(
            one.numel * one.itemsize > most for one in use.tensors
        ),
        "result_above": lambda use, most: max(_result(use), *(t.numel for t in use.tensors)) > most,
        "expanded": lambda use, wanted: (
            wanted is any(0 in _long_strides(one) for one in use.tensors)
        ),
        "causal": lambda use, wanted: bool(use.option("is_causal", "5")) is wanted,
        "masked": lambda use, wanted: (use.operand(3) is not None) is wanted,
        "grouped_queries": lambda use, wanted: _grouped(use) is wanted,
        "values_of_other_size": lambda use, wanted: (
            wanted is (use.sizes(2)[-1:] != use.sizes(1)[-1:])
        ),
        "keys_not_multiple_of": lambda use, of: bool(use.sizes(1)) and use.sizes(1)[-2] % of != 0,
        "layers_with_dropout": lambda use, wanted: _dropout(use) is wanted,
        "input_needs_gradient": lambda use, wanted: (
            wanted is any(one is not None and one.requires_grad for one in use.operands[:1])
        ),
        "non_blocking": lambda use, wanted: bool(use.option("non_blocking")) is wanted,
        "compiled": lambda use, wanted: use.compiled is wanted,
    }
)


def _long_strides(one: Operand) -> tuple[int, ...]:
    """Return the strides of the dimensions that have more than one element."""
    return tuple(s for n, s in zip(one.shape, one.strides, strict=True) if n > 1)
