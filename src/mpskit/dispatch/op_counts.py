"""Counts a step's launches, arithmetic and bytes from the operators intercepted.

Arithmetic of matrix products, convolutions and attention is counted by torch's own formulas
(``torch.utils.flop_counter``), any other operator as one operation for each element of its largest
tensor. An operator is one launch, a view none, and a fused recurrent layer one for each time step,
because each time step waits for the one before.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from mpskit._base.data import read_toml
from mpskit.backends.versions import has
from mpskit.dispatch.dataless_tensors import is_dataless
from mpskit.dispatch.nested import tensors_in
from mpskit.dispatch.op_schema import OpSchema

__all__ = ["OpCounts", "class_of"]

_FREE = frozenset({"view", "item"})
_MADE_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "resize_"})
# The CPU's kernel has its own name and the same arguments.
_SAME_ARITHMETIC = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "_scaled_dot_product_flash_attention_backward"
    ),
}


@dataclass
class OpCounts:
    """Sums over operators.

    Attributes:
        flops: floating-point operations; a multiply and an add are two.
        bytes_moved: bytes read and written; a tensor that an operator names twice counts twice.
        launches: operators that compute.
        flops_by_class: by class of ``data/op_classes.toml``.
        flops_by_dtype: of the first floating-point tensor of each operator.
        launches_by_class: by class.
        depthwise: convolutions with a group for each channel.
    """

    flops: float = 0.0
    bytes_moved: float = 0.0
    launches: int = 0
    flops_by_class: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    flops_by_dtype: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    launches_by_class: Counter[str] = field(default_factory=Counter)
    depthwise: int = 0

    def plus(self, other: OpCounts, times: int) -> OpCounts:
        """Return these counts and ``times`` the other's."""
        total = copy.deepcopy(self)
        for name, more in vars(other).items():
            mine = getattr(total, name)
            if not isinstance(mine, dict):
                setattr(total, name, mine + more * times)
                continue
            for kind, value in more.items():
                mine[kind] += value * times
        return total

    def add(self, func: Any, schema: OpSchema, args: Any, kwargs: Any, result: Any) -> None:
        """Count one operator that has run."""
        if schema.route in _FREE or schema.name in _MADE_EMPTY or "::" in schema.name:
            return
        given = list(tensors_in((*args, *kwargs.values())))
        made = list(tensors_in(result if isinstance(result, list | tuple) else (result,)))
        if all(_is_host_scalar(tensor) for tensor in (*given, *made)):
            return
        kind = class_of(schema.name)
        flops = _flops(func, schema.name, args, kwargs, result, given, made)
        launches = _launches(schema.name, kind, given)
        self.launches += launches
        self.flops += flops
        self.bytes_moved += _moved(schema, given, made)
        self.flops_by_class[kind] += flops
        self.launches_by_class[kind] += launches
        self.flops_by_dtype[_dtype(given or made)] += flops
        self.depthwise += schema.name == "convolution" and _is_depthwise(args)


def class_of(name: str) -> str:
    """Return the class of an operator, by its name in the schema: ``"mm"``, ``"add_"``."""
    classes = _classes()
    return classes.get(name) or classes.get(name.rstrip("_")) or "elementwise"


@functools.cache
def _classes() -> dict[str, str]:
    table = read_toml("op_classes.toml")["classes"]
    return {name: kind for kind, names in table.items() for name in names}


@functools.cache
def _row_readers() -> frozenset[str]:
    return frozenset(read_toml("op_classes.toml")["reads"]["rows"])


def _launches(name: str, kind: str, given: list[torch.Tensor]) -> int:
    """Return the number of sequential kernels: a fused recurrent layer has one per time step."""
    return int(given[0].shape[0]) if kind == "rnn" and "_cell" not in name else 1


def _flops(
    func: Any,
    name: str,
    args: Any,
    kwargs: Any,
    result: Any,
    given: list[torch.Tensor],
    made: list[torch.Tensor],
) -> float:
    if name.startswith("mkldnn_rnn_layer"):
        # Every time step multiplies the input and the state by their weights; the backward pass
        # does so twice, for the gradients of both factors.
        products = 2.0 * given[0].shape[0] * given[0].shape[1] * sum(w.numel() for w in given[1:3])
        return products * (2 if name.endswith("backward") else 1)
    if name == "convolution_backward":
        return _convolution_backward(args)
    formula = _formula(func, name)
    if formula is not None:
        out = "out_val" if has("flop_counter.out_val", torch.__version__) else "out"
        return float(formula(*args, **kwargs, **{out: result}))
    return float(max(t.numel() for t in (*given, *made)))


def _convolution_backward(args: tuple[Any, ...]) -> float:
    """Return the arithmetic of a convolution's backward pass.

    Each gradient takes what the forward pass takes. torch's formula counts the weight's as if the
    convolution had no groups (66 times the forward pass with 64 of them, torch 2.13), and on
    torch 2.2 a transposed one's wrongly too (7 times the forward pass in a small case).
    """
    grad, given, weight = args[:3]
    transposed, mask = args[7], args[10]
    forward = 2.0 * (given if transposed else grad).numel() * weight[0].numel()
    return float(forward * (mask[0] + mask[1]))


@functools.cache
def _formula(func: Any, name: str) -> Callable[..., int] | None:
    from torch.utils.flop_counter import flop_registry

    same = _SAME_ARITHMETIC.get(name)
    packet = getattr(torch.ops.aten, same) if same else func.overloadpacket
    found: Callable[..., int] | None = flop_registry.get(packet)
    return found


def _moved(schema: OpSchema, given: Iterable[torch.Tensor], made: Iterable[torch.Tensor]) -> float:
    written = sum(_nbytes(tensor) for tensor in made)
    if schema.name in _row_readers():
        return 2.0 * written
    return float(written + sum(_nbytes(tensor) for tensor in given))


def _nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes really stored: an expanded tensor has only a few behind it."""
    size = tensor.numel() * tensor.element_size()
    return min(size, tensor.untyped_storage().nbytes()) if 0 in tensor.stride() else size


def _is_host_scalar(tensor: torch.Tensor) -> bool:
    """Return whether it is a scalar that stays on the host, such as an optimizer's step count."""
    return tensor.dim() == 0 and not is_dataless(tensor)


def _dtype(tensors: Iterable[torch.Tensor]) -> str:
    floating = (str(t.dtype) for t in tensors if t.dtype.is_floating_point)
    return next(floating, "int").removeprefix("torch.")


def _is_depthwise(args: Any) -> bool:
    groups = args[8]
    return bool(groups > 1 and groups == args[0].shape[1])
