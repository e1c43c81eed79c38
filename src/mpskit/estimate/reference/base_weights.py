"""The frozen weights under adapters: in half precision, or quantized as bitsandbytes does.

Quantized projections allocate what bitsandbytes 0.50.1 does (``autograd/_functions.py``). On MPS
that is without its Metal kernels: the fallbacks in torch of ``backends/mps/ops.py`` and
``backends/default/ops.py``, run eagerly. With the kernels (macOS 26 and the ``kernels`` package),
or where torch.compile takes the fallbacks, less is held while a weight is unpacked. Elsewhere a
kernel writes the result at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mpskit._base.arguments import shown
from mpskit.backends.precisions import BASES, precision_of
from mpskit.errors import ArgumentError

__all__ = ["Base", "Quantized", "read_base", "with_base"]

_BLOCK = 64  # numbers of a 4-bit weight that share a scale
_CODES = 16  # values that 4 bits choose from
_OUTLIER = 6.0  # from which on LLM.int8() multiplies in half precision


@dataclass(frozen=True)
class Base:
    """Dtypes of a model that is frozen but for its adapters.

    Attributes:
        name: a name in ``BASES``.
        weights: dtype of the frozen weights that are not quantized.
        adapters: dtype of the adapters. peft makes those of a model in half precision float32
            (``autocast_adapter_dtype``), and under autocast they stay so.
        eager: quantized weights are unpacked by operators of torch, not by a kernel.
    """

    name: str
    weights: torch.dtype
    adapters: torch.dtype
    eager: bool = True

    @property
    def quantized(self) -> bool:
        """Return whether the layers' projections are quantized."""
        return BASES[self.name] is None


def read_base(base: Any, *, precision: str, frozen: bool, device: str) -> Base | None:
    """Return what ``base=`` of ``estimate_from_config`` asks for; None where it is None.

    Raises:
        ArgumentError: there is no such base, or the weights are not ``frozen``.
    """
    given = precision_of(precision)
    if base is None:
        return None
    if not isinstance(base, str) or base not in BASES:
        raise ArgumentError(f"no base {shown(base)}: one of {', '.join(BASES)}", given=base)
    if not frozen:
        raise ArgumentError(
            "base= is the dtype of weights that are frozen: give lora= too, or training=False; "
            "precision= says what weights that are trained are",
            given=base,
        )
    name = BASES[base]
    half = given.weights or given.autocast or torch.bfloat16
    weights = half if name is None else getattr(torch, name)
    return Base(base, weights, given.weights or torch.float32, device == "mps")


def with_base(model: nn.Module, layers: list[nn.Module], base: Base) -> None:
    """Give a model's weights the base's dtypes; the projections in its layers are quantized.

    What is outside the layers (embeddings and the head) is not, as transformers leaves it.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(base.weights)
    if base.quantized:
        for module in [part for layer in layers for part in layer.modules()]:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Quantized(child, base))


class Quantized(nn.Module):
    """A frozen projection: ``Linear8bitLt`` or ``Linear4bit``."""

    def __init__(self, plain: nn.Linear, base: Base) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.clones = base.name == "nf4"  # peft copies a 4-bit projection's result
        self.compute, self.eager = base.weights, base.eager
        count = plain.weight.numel()
        if self.clones:
            self.weight = _frozen(torch.empty(count // 2, dtype=torch.uint8, device="meta"))
            self.scales = _frozen(torch.empty(math.ceil(count / _BLOCK), device="meta"))
            self.codes = _frozen(torch.empty(_CODES, device="meta"))
        else:
            sizes = plain.weight.shape
            self.weight = _frozen(torch.empty(sizes, dtype=torch.int8, device="meta"))
            self.scales = _frozen(torch.empty(self.out_features, device="meta"))
        self.bias = plain.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project the tokens."""
        run: Any = _FourBits if self.clones else _EightBits
        made: torch.Tensor = run.apply(x.to(self.compute) if self.clones else x, self)
        return made.to(x.dtype)


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class _FourBits(torch.autograd.Function):
    """A product with a weight that is unpacked for it, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: Quantized) -> torch.Tensor:
        ctx.module = module
        return functional.linear(x, _unpacked(module, x.dtype), module.bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return torch.matmul(grads[0], _unpacked(ctx.module, grads[0].dtype)), None


def _unpacked(module: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """Return a 4-bit weight, [out, in]: each number's code, its value, and that scaled."""
    if not module.eager:
        return torch.empty((module.out_features, module.in_features), dtype=dtype)
    numbers = torch.empty(module.weight.numel() * 2, dtype=torch.int32)
    numbers[1::2] = module.weight & 0xF
    numbers[::2] = module.weight >> 4
    # An index of int32 becomes one of int64 (ATen/native/TensorAdvancedIndexingUtils.h).
    values = module.codes[numbers.to(torch.int64)]
    del numbers
    if values.numel() % _BLOCK:  # of the last numbers, too few for a block
        scaled = values * module.scales[:1]
    else:
        scaled = values.view(-1, _BLOCK) * module.scales.view(-1, 1)
    return scaled.view(module.out_features, module.in_features).to(dtype)


class _EightBits(torch.autograd.Function):
    """LLM.int8(): a product of bytes with the rows quantized too, where no input is an outlier."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: Quantized) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.module, ctx.rows = (
            module,
            rows,
        )  # held past a checkpoint, since it is not a saved tensor
        small, scales = _rows_quantized(rows.to(torch.float16))
        if module.eager:
            product = torch.matmul(small.float(), module.weight.float().t()).to(torch.int32)
            made = product * (scales[:, None] * module.scales[None, :]) * 1.0
        else:
            product = torch.empty((len(rows), module.out_features), dtype=torch.int32)
            made = torch.empty(product.shape, dtype=torch.float16)
        if module.bias is not None:
            made += module.bias
        return made.to(x.dtype).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        module, dtype = ctx.module, ctx.rows.dtype
        weight = module.weight.to(dtype, copy=True).mul_(module.scales.unsqueeze(1).mul(1.0))
        rows = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        made = torch.matmul(rows.to(dtype), weight)
        return made.view(*grads[0].shape[:-1], -1), None


def _rows_quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outliers = rows.abs() >= _OUTLIER
    outliers.any()
    scales = torch.max(rows.abs(), dim=1).values.float()
    return torch.round(rows * (127.0 / scales.unsqueeze(-1))).to(torch.int8), scales
