"""The C library's heap: glibc's calls that say which memory goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

__all__ = ["returning_large_blocks", "trim_heap"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20
# The most that 64-bit glibc raises its threshold to by itself (DEFAULT_MMAP_THRESHOLD_MAX in
# malloc/malloc.c): a process that frees large tensors is there soon.
_GREATEST = 32 << 20


def trim_heap() -> None:
    """Give free pages back; nothing happens without glibc."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def returning_large_blocks() -> Iterator[None]:
    """Give every block of 1 MiB or more back as soon as it is freed, inside the block.

    Else glibc keeps freed blocks of up to 32 MiB mapped, in pieces that the next larger ones do not
    fit into. Afterwards the thresholds stand where glibc's own growth ends. Nothing happens
    without glibc.
    """
    set_option = _function("mallopt")
    if set_option is None:
        yield
        return
    try:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
        yield
    finally:
        set_option(_M_MMAP_THRESHOLD, _GREATEST)
        set_option(_M_TRIM_THRESHOLD, 2 * _GREATEST)


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    found: ctypes._NamedFuncPointer | None = getattr(ctypes.CDLL(None), name, None)
    return found
