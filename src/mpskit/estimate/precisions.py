"""The names of precisions, and the dtypes of weights and of autocast that each stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["BASES", "PRECISIONS", "Precision", "precision_of"]

# name -> dtype of the weights, dtype of autocast; None where they are left as they are. Names of
# dtypes, because the command line lists the precisions before torch is imported.
PRECISIONS: dict[str, tuple[str | None, str | None]] = {
    "fp32": (None, None),
    "bf16": ("bfloat16", None),
    "fp16": ("float16", None),
    "bf16-mixed": (None, "bfloat16"),
    "fp16-mixed": (None, "float16"),
}

# What the weights under adapters can be -> their dtype; None where bitsandbytes quantizes them.
BASES: dict[str, str | None] = {"bf16": "bfloat16", "fp16": "float16", "int8": None, "nf4": None}


class Precision(NamedTuple):
    """What a precision's name stands for: the weights' dtype and autocast's, where there is one."""

    weights: torch.dtype | None
    autocast: torch.dtype | None


def precision_of(name: object) -> Precision:
    """Return the dtypes of a precision.

    Raises:
        ArgumentError: there is no precision of that name.
    """
    import torch

    names = PRECISIONS.get(name) if isinstance(name, str) else None
    if names is None:
        raise ArgumentError(f"no precision {name!r}: one of {', '.join(PRECISIONS)}", given=name)
    weights, autocast = (None if dtype is None else getattr(torch, dtype) for dtype in names)
    return Precision(weights, autocast)
