"""The frozen weights under adapters: their dtype, where it is not the precision's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpskit.errors import ArgumentError
from mpskit.estimate.precisions import BASES, precision_of

__all__ = ["Base", "read_base"]


@dataclass(frozen=True)
class Base:
    """Dtypes of a model that is frozen but for its adapters.

    Attributes:
        name: a name in ``BASES``.
        weights: dtype of the frozen weights.
        adapters: dtype of the adapters. peft makes those of a model in half precision float32
            (``autocast_adapter_dtype``), and under autocast they stay so.
    """

    name: str
    weights: torch.dtype
    adapters: torch.dtype


def read_base(base: Any, *, precision: str, frozen: bool) -> Base | None:
    """Return what ``base=`` of ``estimate_from_config`` asks for; None where it is None.

    Raises:
        ArgumentError: there is no such base, or the weights are not ``frozen``.
    """
    given = precision_of(precision)
    if base is None:
        return None
    if not isinstance(base, str) or base not in BASES:
        raise ArgumentError(f"no base {base!r}: one of {', '.join(BASES)}", given=base)
    if not frozen:
        raise ArgumentError(
            "base= is the dtype of weights that are frozen: give lora= too, or training=False; "
            "precision= says what weights that are trained are",
            given=base,
        )
    return Base(base, getattr(torch, BASES[base]), given.weights or torch.float32)
