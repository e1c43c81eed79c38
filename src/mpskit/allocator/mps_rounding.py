"""How MPSAllocator rounds a request, and how large a heap it asks Metal for.

The constants are those of torch's ``ATen/mps/MPSAllocator.h``, the same in every macOS wheel from
2.1.2 to 2.15.0. The bucket rule came with pytorch#187441 and is in the wheels from 2.14.

Metal's ``heapBufferSizeAndAlignWithLength:`` decides the alignment. Reports show Apple GPUs turn
tiny requests into 256 bytes (torch's "Tried to allocate 256 bytes") and keep 1 KiB at 1024
(pytorch#193838), so every size is rounded to 256 here.
"""

from __future__ import annotations

import functools

from mpskit._base.sizes import GIB, MIB

__all__ = [
    "ALIGNMENT",
    "LARGE_HEAP",
    "MAX_SMALL",
    "PAGE",
    "SMALL_HEAP",
    "XLARGE_HEAP",
    "aligned_size",
    "bucketed_size",
    "heap_size",
]

ALIGNMENT = 256
PAGE = 16 * 1024  # vm_page_size on Apple silicon
MAX_SMALL = MIB
MIN_XLARGE = 10 * MIB
ROUND_LARGE = 2 * MIB
SMALL_HEAP = 8 * MIB
LARGE_HEAP = 32 * MIB
XLARGE_HEAP = GIB
XLARGE_HEAP_DISCRETE = 128 * MIB
_BUCKETS_PER_POWER = 32


def aligned_size(size: int) -> int:
    """Return the bytes that a buffer of ``size`` bytes takes in a heap (a multiple of 256)."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@functools.lru_cache(maxsize=8192)
def bucketed_size(aligned: int, max_buffer: int | None) -> int:
    """Return the size that torch 2.14 and later round an aligned size up to.

    Sizes over 1 MiB are rounded up to one of 32 steps per power of two, at least a page apart, so
    that a tensor that grows a little at each step reuses its old buffer. The size is kept where
    rounding would need a larger heap or reach the largest buffer.
    """
    if aligned <= MAX_SMALL:
        return aligned
    step = max((1 << (aligned.bit_length() - 1)) // _BUCKETS_PER_POWER, PAGE)
    rounded = -(-aligned // step) * step
    too_large = max_buffer is not None and rounded >= max_buffer
    return aligned if too_large or _tier(rounded) != _tier(aligned) else rounded


def heap_size(size: int, *, pressure: bool = False, xlarge: int = XLARGE_HEAP) -> tuple[int, bool]:
    """Return the size of the heap that a new buffer of ``size`` bytes needs, and if it is shared.

    Args:
        size: aligned bytes of the buffer.
        pressure: whether the low watermark is reached; buffers of 10 to 512 MiB then get a heap
            of their own.
        xlarge: the largest shared heap: 1 GiB, or 128 MiB on a discrete GPU (up to torch 2.12).
    """
    tier = _tier(size, pressure=pressure, xlarge=xlarge)
    if tier is None:
        return -(-size // ROUND_LARGE) * ROUND_LARGE, False
    return tier, True


def _tier(size: int, *, pressure: bool = False, xlarge: int = XLARGE_HEAP) -> int | None:
    """Return the size of the shared heap for such a buffer; None if it gets its own heap."""
    if size <= MAX_SMALL:
        return SMALL_HEAP
    if size < MIN_XLARGE:
        return LARGE_HEAP
    return xlarge if size < xlarge // 2 and not pressure else None
