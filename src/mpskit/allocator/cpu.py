"""The CPU allocator: every request goes to ``malloc``, every release to ``free``; no cache.

torch aligns to 64 bytes (``c10/core/alignment.h``) and reports the requested bytes, also to its
profiler (``c10/core/CPUAllocator.cpp``). Neither torch nor this model counts malloc's overhead.
"""

from __future__ import annotations

from mpskit.errors import ArgumentError

__all__ = ["CpuAllocator"]


class CpuAllocator:
    """A model of torch's CPU allocator: live and driver bytes are both the requested bytes."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._next = 0
        self._live = 0
        self._peak = 0

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return the block's number."""
        if size < 0:
            raise ArgumentError(f"cannot allocate {size} bytes", given=size)
        self._next += 1
        self._sizes[self._next] = size
        self._live += size
        self._peak = max(self._peak, self._live)
        return self._next

    def free(self, block: int) -> None:
        """Free a block.

        Raises:
            ArgumentError: the block is not allocated.
        """
        size = self._sizes.pop(block, None)
        if size is None:
            raise ArgumentError(f"block {block} is not allocated", given=block)
        self._live -= size

    def empty_cache(self) -> None:
        """Do nothing: there is no cache."""

    def reset_peaks(self) -> None:
        """Reset the peak to the current figure."""
        self._peak = self._live

    @property
    def live_bytes(self) -> int:
        """Bytes requested and not yet freed."""
        return self._live

    @property
    def heap_bytes(self) -> int:
        """The same as ``live_bytes``."""
        return self._live

    @property
    def driver_bytes(self) -> int:
        """The same as ``live_bytes``."""
        return self._live

    @property
    def peak_live_bytes(self) -> int:
        """The largest ``live_bytes`` since the last reset."""
        return self._peak

    @property
    def peak_driver_bytes(self) -> int:
        """The same as ``peak_live_bytes``."""
        return self._peak
