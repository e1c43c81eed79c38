"""glibc's heap: returning freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

__all__ = ["returning_large_blocks", "trim_heap"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20
# The most that 64-bit glibc raises its threshold to by itself (DEFAULT_MMAP_THRESHOLD_MAX in
# malloc/malloc.c): a process that frees large tensors soon reaches it.
_GREATEST = 32 << 20


def trim_heap() -> None:
    """Return free pages to the system; a no-op without glibc."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def returning_large_blocks() -> Iterator[None]:
    """Return every allocation of 1 MiB or more to the system as soon as it is freed.

    Otherwise glibc keeps freed blocks of up to 32 MiB mapped, too fragmented for larger ones. On
    exit the thresholds are set to the maximum that glibc itself grows them to. A no-op without
    glibc.
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
