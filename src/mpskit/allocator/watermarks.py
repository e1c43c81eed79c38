"""The watermark ratios of MPSAllocator, and how torch's C++ reads its ``PYTORCH_*`` variables.

The names, the defaults, the bounds and the two readers (C's ``strtod`` and C++'s ``std::stoi``)
stand here once, for the environment's explanations, the budgets, the caps and the simulated Mac.
Source: ATen/mps/MPSAllocator.{h,mm} and MPSFallback.mm, torch 2.1 to 2.15.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "DEFAULT_HIGH",
    "DEFAULT_LOW",
    "FALLBACK",
    "HIGH",
    "HIGHEST",
    "LOW",
    "Watermarks",
    "int_problem",
    "is_whole",
    "limit_bytes",
    "read_int",
    "read_ratio",
    "read_watermarks",
]

HIGH = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
LOW = "PYTORCH_MPS_LOW_WATERMARK_RATIO"
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"

# The hard limit, and where garbage collection starts on a GPU that shares the machine's memory (a
# discrete GPU's low ratio was 1.0 until torch 2.12), both as ratios of the recommended working set.
DEFAULT_HIGH = 1.7
DEFAULT_LOW = 1.4
HIGHEST = 2.0  # default_high_watermark_upper_bound

# Compiled at their first use: a budget of another machine reads no variable.
_FLOAT = (
    r"(?ia)\s*([+-]?(?:0x(?:[\da-f]+\.?[\da-f]*|\.[\da-f]+)(?:p[+-]?\d+)?"
    r"|\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|inf(?:inity)?|nan))"
)
_INT = r"(?a)\s*([+-]?)(?=\d)0*(\d*)"
_INT_DIGITS = 10
_INT_RANGE = range(-(2**31), 2**31)


class Watermarks(NamedTuple):
    """The ratios of the recommended working set at which torch stops and starts to collect."""

    high: float = DEFAULT_HIGH
    low: float = DEFAULT_LOW


def read_watermarks(environ: Mapping[str, str]) -> Watermarks:
    """Return the ratios that torch's allocator starts with; a text that is no number is 0."""
    texts = {"high": environ.get(HIGH), "low": environ.get(LOW)}
    return Watermarks(
        **{side: read_ratio(text) or 0.0 for side, text in texts.items() if text is not None}
    )


def limit_bytes(recommended: int, ratio: float = DEFAULT_HIGH) -> int:
    """Return PyTorch's hard limit for a working set: ``size_t(ratio * (double)recommended)``.

    Source: ``MPSHeapAllocatorImpl::setHighWatermarkRatio`` in MPSAllocator.mm.
    """
    return int(ratio * recommended)


def read_ratio(text: str) -> float | None:
    """Return the number at the start of a text, as C's ``strtod`` finds it; None if none."""
    match = re.match(_FLOAT, text)
    if match is None:
        return None
    try:
        return float.fromhex(match[1]) if "x" in match[1].lower() else float(match[1])
    except OverflowError:
        # strtod returns HUGE_VAL, with the sign.
        return -math.inf if match[1].startswith("-") else math.inf


def read_int(text: str) -> int | None:
    """Return the int at the start of a text, as ``std::stoi`` finds it; None where that throws."""
    if int_problem(text) is not None:
        return None
    match = re.match(_INT, text)
    return int(f"{match[1]}{match[2] or 0}") if match else None


def int_problem(text: str) -> str | None:
    """Return why ``std::stoi`` throws on a text, None if it does not."""
    match = re.match(_INT, text)
    if match is None:
        return "is not a number"
    fits = len(match[2]) <= _INT_DIGITS and int(f"{match[1]}{match[2] or 0}") in _INT_RANGE
    return None if fits else "is out of an int's range"


def is_whole(text: str, *, ratio: bool) -> bool:
    """Return whether C's reader uses the whole of a text, blanks around the number aside."""
    return re.fullmatch(_FLOAT if ratio else _INT, text.rstrip()) is not None
