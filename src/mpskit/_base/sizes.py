"""Byte counts as text: one parser and one formatter for the whole library."""

from __future__ import annotations

import math
import re

from mpskit._base.arguments import wrong_type
from mpskit.errors import ArgumentError

__all__ = ["GIB", "KIB", "MIB", "format_bytes", "parse_bytes"]

KIB = 1024
MIB = 1024**2
GIB = 1024**3

# Memory is counted in powers of two by torch, Metal and the machine's maker alike, so "GB" is
# 2**30 here as it is in torch's own messages.
_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}
_UNITS |= {f"{p}{s}": 1024**i for i, p in enumerate("kmgt", 1) for s in ("", "b", "ib")}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)


def format_bytes(count: int) -> str:
    """Return ``count`` bytes as people write it: ``"9.07 GiB"``, ``"512 bytes"``.

    >>> format_bytes(9 * 1024**3 + 75_161_928)
    '9.07 GiB'
    """
    for unit, size in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as ``"12GiB"``, ``"512 MB"`` or ``"1024"`` names.

    Raises:
        ArgumentTypeError: ``text`` is not a string.
        ArgumentError: it is not a number with a known unit, or not finite.
    """
    if not isinstance(text, str):
        raise wrong_type("a size", "a str such as '12GiB'", text)
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    number = float(match[1]) if match else math.nan
    if factor is None or not math.isfinite(number * factor):
        raise ArgumentError(
            f"{text!r} is not a size: write a number and B, KiB, MiB, GiB or TiB", given=text
        )
    return int(number * factor)
