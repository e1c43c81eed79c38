"""Patterns of out-of-memory messages: which one matches, and the sizes printed in it.

The texts are data (``data/oom_texts.toml``, each with the thread that shows it); the phrases in
which they print a size are here. Everything is a pure function of the text.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from mpskit._base.data import read_toml
from mpskit._base.sizes import GIB, KIB, MIB

__all__ = ["OomText", "find_sizes", "oom_texts", "recognise"]

# torch counts in powers of two under either name: "GB" and "GiB" are both 2**30 (c10's
# format_size; the letter i came with torch 2.8).
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB, "P": MIB * GIB, "E": GIB * GIB}
# It never starts inside a number, where each digit of a long one would be tried.
_NUMBER = r"(?<![\d.])\d{1,24}(?:\.\d{0,12})?"
_SIZE = rf"({_NUMBER}) ?(bytes?|[KMGTPE]i?B|B)\b"
# numpy and Metal leave the unit out where the figure is in bytes.
_BARE = rf"({_NUMBER})(?: ?(bytes?|[KMGTPE]i?B)\b)?"

# Field -> the phrases that carry it, the plainest first; a space stands for any gap.
_PHRASES = {
    "allocated": (
        rf"MPS allocated: ?{_SIZE}",
        rf"{_SIZE} is allocated by PyTorch",
        rf"{_SIZE} already allocated",
    ),
    "other": (rf"other allocations: ?{_SIZE}",),
    "max_allowed": (
        rf"max allowed: ?{_SIZE}",
        rf"{_SIZE} allowed;",
        # "capacty" is how torch 2.1 to 2.2 spelt it.
        rf"total capaci?ty of {_SIZE}",
        rf"{_SIZE} total capacity",
    ),
    "requested": (
        rf"(?:tried|trying) to allocate {_SIZE}",
        rf"Invalid buffer size: ?{_BARE}",
        rf"Unable to allocate {_SIZE}",
        rf"unable to mmap {_SIZE}",
        rf"Attempting to allocate {_SIZE}",
        rf"MTLBuffer for size {_BARE}",
        rf"Failed to CUDA calloc(?: async)? {_SIZE}",
        rf"requested buffer of size {_BARE}",
    ),
    "free": (rf"of which {_SIZE} is free", rf"{_SIZE} free;"),
    "cached": (rf"{_SIZE} is reserved by PyTorch but", rf"{_SIZE} cached"),
    "reserved": (rf"{_SIZE} reserved in total by PyTorch",),
}
# Logs wrap lines anywhere, and quotations prefix them with a sign.
_GAP = r"[\s#>|]"


class OomText(NamedTuple):
    """One out-of-memory message: a row of ``data/oom_texts.toml``."""

    backend: str
    kind: str
    pattern: re.Pattern[str]
    example: str
    source: str
    types: tuple[str, ...] = ()


@functools.cache
def oom_texts() -> tuple[OomText, ...]:
    """Return every known message, in the order of matching."""
    rows = read_toml("oom_texts.toml")["text"]
    return tuple(_row(**row) for row in rows)


def _row(*, pattern: str, types: tuple[str, ...] = (), **cells: str) -> OomText:
    return OomText(pattern=_compiled(pattern), types=tuple(types), **cells)


def recognise(text: str) -> OomText | None:
    """Return the first row whose pattern is in ``text``; None if it is not about memory."""
    return next((row for row in oom_texts() if row.pattern.search(text)), None)


def find_sizes(text: str) -> dict[str, int]:
    """Return the sizes printed in ``text`` in bytes, by field; those not printed are left out."""
    found = {}
    for field, phrases in _phrases().items():
        match = next((hit for hit in (phrase.search(text) for phrase in phrases) if hit), None)
        if match:
            found[field] = _bytes(match[1], match[2] or "")
    return found


@functools.cache
def _phrases() -> dict[str, tuple[re.Pattern[str], ...]]:
    return {
        field: tuple(_compiled(phrase) for phrase in phrases) for field, phrases in _PHRASES.items()
    }


def _compiled(pattern: str) -> re.Pattern[str]:
    # Possessive, so that a gap is never retried shorter.
    spaced = pattern.replace(" ?", f"{_GAP}*+").replace(" ", f"{_GAP}++")
    return re.compile(spaced, re.IGNORECASE | re.DOTALL | re.ASCII)


def _bytes(number: str, unit: str) -> int:
    factor = _UNITS[unit[:1].upper() if unit[:1].upper() in _UNITS and len(unit) > 1 else ""]
    return int(number) * factor if number.isdigit() else int(float(number) * factor)
