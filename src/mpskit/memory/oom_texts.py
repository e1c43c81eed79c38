"""The texts of running out of memory: which one it is, and the sizes printed in it.

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
_NUMBER = r"\d{1,24}(?:\.\d{0,12})?"
_SIZE = rf"({_NUMBER})\s*(bytes?|[KMGTPE]i?B|B)\b"
# numpy and Metal leave the unit out where the figure is in bytes.
_BARE = rf"({_NUMBER})\s*(bytes?|[KMGTPE]i?B|B)?"

# Field -> the phrases that carry it, the plainest first.
_PHRASES = {
    "allocated": (
        rf"MPS allocated:\s*{_SIZE}",
        rf"{_SIZE}\s+is\s+allocated\s+by\s+PyTorch",
        rf"{_SIZE}\s+already\s+allocated",
    ),
    "other": (rf"other\s+allocations:\s*{_SIZE}",),
    "max_allowed": (
        rf"max\s+allowed:\s*{_SIZE}",
        rf"{_SIZE}\s+allowed;",
        # "capacty" is how torch 2.1 to 2.2 spelt it.
        rf"total\s+capaci?ty\s+of\s+{_SIZE}",
        rf"{_SIZE}\s+total\s+capacity",
    ),
    "requested": (
        rf"tried\s+to\s+allocate\s+{_SIZE}",
        rf"Invalid\s+buffer\s+size:\s*{_BARE}",
        rf"Unable\s+to\s+allocate\s+{_SIZE}",
        rf"unable\s+to\s+mmap\s+{_SIZE}",
    ),
    "free": (rf"of\s+which\s+{_SIZE}\s+is\s+free", rf"{_SIZE}\s+free;"),
    "cached": (rf"{_SIZE}\s+is\s+reserved\s+by\s+PyTorch\s+but", rf"{_SIZE}\s+cached"),
    "reserved": (rf"{_SIZE}\s+reserved\s+in\s+total\s+by\s+PyTorch",),
}


class OomText(NamedTuple):
    """One way of saying that memory ran out: a row of ``data/oom_texts.toml``."""

    backend: str
    kind: str
    pattern: re.Pattern[str]
    example: str
    source: str


@functools.cache
def oom_texts() -> tuple[OomText, ...]:
    """Return every known text; the first whose pattern is found is the one."""
    rows = read_toml("oom_texts.toml")["text"]
    return tuple(OomText(**(row | {"pattern": _compiled(row["pattern"])})) for row in rows)


def recognise(text: str) -> OomText | None:
    """Return the row whose pattern is in ``text``, or None if it tells of no lack of memory."""
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
    flags = re.IGNORECASE | re.ASCII
    return {
        field: tuple(re.compile(phrase, flags) for phrase in phrases)
        for field, phrases in _PHRASES.items()
    }


def _compiled(pattern: str) -> re.Pattern[str]:
    # Logs wrap lines anywhere, so a space stands for any white space.
    spaced = pattern.replace(" ?", r"\s*").replace(" ", r"\s+")
    return re.compile(spaced, re.IGNORECASE | re.DOTALL | re.ASCII)


def _bytes(number: str, unit: str) -> int:
    factor = _UNITS[unit[:1].upper() if unit[:1].upper() in _UNITS and len(unit) > 1 else ""]
    return int(number) * factor if number.isdigit() else int(float(number) * factor)
