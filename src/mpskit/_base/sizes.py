"""Byte counts as text: one parser and one formatter for the whole library."""

from __future__ import annotations

import math
import re

from mpskit._base.arguments import shown, wrong_type
from mpskit.errors import ArgumentError

__all__ = ["GIB", "KIB", "MIB", "check_size", "format_bytes", "meant_otherwise", "parse_bytes"]

KIB = 1024
MIB = 1024**2
GIB = 1024**3

# Memory is counted in powers of two by torch, Metal and the machine's maker alike, so "GB" is
# 2**30 here as it is in torch's own messages.
_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}
_UNITS |= {f"{p}{s}": 1024**i for i, p in enumerate("kmgt", 1) for s in ("", "b", "ib")}
_SIZE = re.compile(
    r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:e\+?\d{1,3})?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE
)
# A bare number below it is hardly meant in bytes, and no memory is beyond the other.
_LEAST, _MOST = MIB, 2**63


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
    """Return the bytes that a text such as ``"12GiB"``, ``"512 mb"`` or ``"1e9"`` names.

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
            f"{shown(text)} is not a size: write a number and its unit, such as '16GiB', '16 GB' "
            "or '512MiB'",
            given=text,
        )
    return int(number * factor)


def meant_otherwise(amount: int | str) -> str | None:
    """Return what a number of bytes without a unit was meant to be, if it is that small.

    >>> meant_otherwise("80")
    "'80%' or '80GiB'"
    >>> meant_otherwise(16 * 2**30), meant_otherwise("80 bytes"), meant_otherwise(0)
    (None, None, None)
    """
    text = shown(amount) if isinstance(amount, int) else amount.strip()
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or not 0 < int(text) < _LEAST:
        return None
    return f"'{text}%' or '{text}GiB'" if int(text) <= 100 else f"'{text}MiB'"


def check_size(name: str, size: object) -> int:
    """Return an argument that is a number of bytes, once it is known to be one.

    Raises:
        ArgumentTypeError: it is not an int.
        ArgumentError: it is not positive, so small that it was meant in GiB, or beyond 2**63.
    """
    if not isinstance(size, int) or isinstance(size, bool):
        raise wrong_type(name, "an int of bytes", size)
    if size <= 0:
        raise ArgumentError(f"{name} must be positive, got {shown(size)} bytes", given=size)
    if size < _LEAST:
        raise ArgumentError(
            f"{name} is a number of bytes, and {size} bytes are no machine's memory: did you mean "
            f"{size} * 2**30?",
            given=size,
        )
    if size > _MOST:
        raise ArgumentError(f"{name} is more bytes than any machine has", given=size)
    return size
