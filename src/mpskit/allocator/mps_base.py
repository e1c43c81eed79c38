"""What all versions of MPSAllocator share: counters, watermarks and the out-of-memory error.

Rules: ATen/mps/MPSAllocator.{h,mm}, the same in every torch from 2.1 to 2.15 except for the units
in the texts. GPU work is taken to finish at once (a real allocator also waits for buffers in
flight). ``other_bytes`` is what Metal and MPSGraph allocate for themselves, 0 unless set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from mpskit._base.sizes import MIB
from mpskit.allocator.errors import AllocatorLimitError, BufferTooLargeError, WatermarkError
from mpskit.allocator.mps_text import buffer_text, oom_text, watermark_text
from mpskit.allocator.watermarks import DEFAULT_HIGH, DEFAULT_LOW, HIGHEST, limit_bytes
from mpskit.errors import ArgumentError

__all__ = ["NOTHING", "UNBOUNDED", "Limits", "MpsAllocator"]

# The block that a request of no bytes gets: torch makes no buffer for it.
NOTHING = 0


class Limits(NamedTuple):
    """The bounds of an MPSAllocator: sizes in bytes (None: unbounded) and torch's two ratios."""

    recommended_bytes: int | None = None
    max_buffer_bytes: int | None = None
    high: float = DEFAULT_HIGH
    low: float = DEFAULT_LOW


UNBOUNDED = Limits()


class MpsAllocator(ABC):
    """The base of both versions of MPSAllocator.

    ``other_bytes`` is what Metal counts for the process beside the heaps (MPSGraph's own buffers);
    a caller that knows it may set it.
    """

    def __init__(self, torch_version: str, limits: Limits = UNBOUNDED) -> None:
        self.other_bytes = 0
        self._torch = torch_version
        self._recommended = limits.recommended_bytes
        self._max_buffer = limits.max_buffer_bytes
        self._limit: int | None = None
        self._low_limit: int | None = None
        self._high = 0.0
        self._live = self._peak_live = 0
        self._heaps = self._peak_driver = 0
        self._keys = NOTHING
        self.set_high_watermark(limits.high)
        self._set_low_watermark(limits.low)

    def set_high_watermark(self, ratio: float) -> None:
        """Set the hard limit to ``ratio`` times the recommended size; 0 means none.

        This is ``torch.mps.set_per_process_memory_fraction``: the low watermark stays as it is,
        even if it is then above the high one.

        Raises:
            WatermarkError: the ratio is not in 0 to 2.
        """
        self._limit = self._watermark("high", ratio, HIGHEST)
        self._high = ratio

    def _set_low_watermark(self, ratio: float) -> None:
        self._low_limit = self._watermark("low", ratio, self._high or HIGHEST)

    def _watermark(self, which: str, ratio: float, bound: float) -> int | None:
        if not 0.0 <= ratio <= bound:
            raise WatermarkError(watermark_text(which, ratio), given=ratio)
        unlimited = ratio == 0.0 or self._recommended is None
        return (
            None
            if unlimited or self._recommended is None
            else limit_bytes(self._recommended, ratio)
        )

    def lift_limits(self) -> None:
        """Refuse nothing from now on, and collect nothing: no limit, no watermark, any buffer."""
        self._limit = self._low_limit = self._max_buffer = None

    def clear_of_limits(self, driver: int, largest: int) -> bool:
        """Return whether no limit would change what a run does.

        Args:
            driver: the run's largest ``driver_bytes``.
            largest: its largest request; a bucket is at most twice as large.
        """
        high = self._limit is None or driver + 2 * largest + MIB <= self._limit
        low = self._low_limit is None or self._low_limit - driver >= MIB
        return high and low and (self._max_buffer is None or 2 * largest < self._max_buffer)

    @property
    def limit_bytes(self) -> int | None:
        """The hard limit on ``driver_bytes``; None without one."""
        return self._limit

    @property
    def live_bytes(self) -> int:
        """Bytes of buffers in use: ``torch.mps.current_allocated_memory()``."""
        return self._live

    @property
    def heap_bytes(self) -> int:
        """Bytes of all heaps: torch's "MPS allocated" and ``memory_reserved``."""
        return self._heaps

    @property
    def driver_bytes(self) -> int:
        """Bytes that Metal counts: ``torch.mps.driver_allocated_memory()``."""
        return self._heaps + self.other_bytes

    @property
    def peak_live_bytes(self) -> int:
        """The largest ``live_bytes`` since the last reset."""
        return self._peak_live

    @property
    def peak_driver_bytes(self) -> int:
        """The largest ``driver_bytes`` since the last reset."""
        return max(self._peak_driver, self.driver_bytes)

    def reset_peaks(self) -> None:
        """Reset both peaks to the current figures."""
        self._peak_live = self._live
        self._peak_driver = self.driver_bytes

    def fits(self, size: int) -> bool:
        """Return whether a buffer of that size stays under the high watermark."""
        return self._limit is None or self._heaps + self.other_bytes + size <= self._limit

    def grow(self, size: int) -> None:
        """Count a heap that Metal has made."""
        self._heaps += size
        self._peak_driver = max(self._peak_driver, self.driver_bytes)

    def shrink(self, size: int) -> None:
        """Count a heap that is released to Metal."""
        self._peak_driver = max(self._peak_driver, self.driver_bytes)
        self._heaps -= size

    def next_key(self) -> int:
        """Return a new number for a buffer or a heap."""
        self._keys += 1
        return self._keys

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return the block's number (0 for a request of no bytes).

        Raises:
            AllocatorLimitError: the high watermark is reached even after the cache is emptied.
            BufferTooLargeError: ``size`` is Metal's ``maxBufferLength`` or more.
            ArgumentError: ``size`` is negative.
        """

    @abstractmethod
    def free(self, block: int) -> None:
        """Free a block; its pool caches it.

        Raises:
            ArgumentError: the block is not allocated.
        """

    @abstractmethod
    def empty_cache(self) -> None:
        """Release every heap without a live buffer to Metal."""

    def _pressed(self, *, small: bool) -> bool:
        """Return whether less than 1 MiB is left below the low watermark (large requests only)."""
        return (
            not small and self._low_limit is not None and self._low_limit - self.driver_bytes < MIB
        )

    def _check(self, size: int) -> None:
        if size < 0:
            raise ArgumentError(f"cannot allocate {size} bytes", given=size)
        if self._max_buffer is not None and size >= self._max_buffer:
            raise BufferTooLargeError(
                buffer_text(size, self._torch), requested=size, max_buffer=self._max_buffer
            )

    def _limit_error(self, size: int, *, shared: bool) -> AllocatorLimitError:
        limit = self._limit if self._high else None
        pool = "shared" if shared else "private"
        text = oom_text(
            self._torch,
            allocated=self._heaps,
            other=self.other_bytes,
            max_allowed=limit,
            requested=size,
            pool=pool,
        )
        return AllocatorLimitError(
            text,
            allocated=self._heaps,
            other=self.other_bytes,
            max_allowed=limit,
            requested=size,
            pool=pool,
        )
