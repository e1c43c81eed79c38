"""The names of precisions, mpskit's and the trainers', and the dtypes that each stands for.

The house's names are those of Lightning without the ``-true``: ``bf16`` and ``fp16`` mean weights
of that type, the ``-mixed`` ones autocast over float32 weights. accelerate and transformers call
mixed precision ``bf16`` and ``fp16``: for them write ``bf16-mixed`` and ``fp16-mixed`` here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from mpskit._base.arguments import shown, wrong_type
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    import torch

__all__ = [
    "BASES",
    "PRECISIONS",
    "Dtypes",
    "PrecisionLike",
    "dtype_of",
    "half_named",
    "precision_name",
    "precision_of",
]

PrecisionLike: TypeAlias = "str | torch.dtype"

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

# What others call them, as far as it means one thing everywhere.
_OTHER_NAMES = {
    # Lightning
    "32-true": "fp32",
    "32": "fp32",
    "bf16-true": "bf16",
    "16-true": "fp16",
    "16-mixed": "fp16-mixed",
    # accelerate
    "no": "fp32",
    # torch
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}


class Dtypes(NamedTuple):
    """What a precision's name stands for: the weights' dtype and autocast's, where there is one."""

    weights: torch.dtype | None
    autocast: torch.dtype | None


def dtype_of(name: str) -> str:
    """Return the dtype that most weights have in a precision or a base, or the base's own name."""
    if name in BASES:
        return BASES[name] or name
    return PRECISIONS[name][0] or "float32"


def half_named(dtype: str | None) -> str | None:
    """Return the short name of a half-precision dtype; None for every other."""
    return next((name for name, found in BASES.items() if found == dtype and dtype), None)


def precision_name(given: object) -> str:
    """Return a precision's name in :data:`PRECISIONS`.

    Args:
        given: such a name, Lightning's (``"bf16-true"``, ``"16-mixed"``), accelerate's ``"no"``,
            or a dtype (``torch.float16``, ``"float16"``), which means weights of that type.

    Raises:
        ArgumentTypeError: it is neither a str nor a dtype.
        ArgumentError: there is no precision of that name.
    """
    kind = type(given)
    if not isinstance(given, str) and (kind.__module__, kind.__name__) != ("torch", "dtype"):
        raise wrong_type("precision", "a name such as 'bf16-mixed' or a torch.dtype", given)
    name = str(given).strip().lower().removeprefix("torch.")
    name = _OTHER_NAMES.get(name, name)
    if name not in PRECISIONS:
        raise _unknown(given, name)
    return name


def precision_of(given: object) -> Dtypes:
    """Return the dtypes of a precision.

    Raises:
        ArgumentTypeError, ArgumentError: as for :func:`precision_name`.
    """
    import torch

    names = PRECISIONS[precision_name(given)]
    weights, autocast = (None if dtype is None else getattr(torch, dtype) for dtype in names)
    return Dtypes(weights, autocast)


def _unknown(given: object, name: str) -> ArgumentError:
    known = ", ".join(PRECISIONS)
    if name == "16":
        why = ": it does not say which type nor whether mixed; fp16-mixed, bf16 and the rest do"
        return ArgumentError(f"no precision {shown(given)}{why}", given=given)
    near = difflib.get_close_matches(name, [*PRECISIONS, *_OTHER_NAMES], n=2)
    hint = f" (near: {', '.join(near)})" if near else ""
    return ArgumentError(
        f"no precision {shown(given)}{hint}: one of {known}, or Lightning's name or a dtype for "
        "one of these",
        given=given,
    )
