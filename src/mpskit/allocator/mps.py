"""MPSAllocator, as torch has it: to 2.12, 2.13, and 2.14 and later.

What it counts and when it fails follows ATen/mps/MPSAllocator.{h,mm}; the rules of the pools stand
in ``mps_heaps`` (to 2.13) and ``mps_placement`` (from 2.14), the texts in ``mps_text``.

The GPU's work counts as finished at once (a real allocator also waits for buffers in flight), and
what Metal and MPSGraph allocate for themselves is ``other_bytes``, 0 unless set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from mpskit._sizes import MIB
from mpskit.allocator.errors import AllocatorLimitError, BufferTooLargeError, WatermarkError
from mpskit.allocator.mps_heaps import Buffer, CachingPool
from mpskit.allocator.mps_placement import Block, PlacementPool
from mpskit.allocator.mps_rounding import (
    MAX_SMALL,
    XLARGE_HEAP,
    XLARGE_HEAP_DISCRETE,
    aligned_size,
    bucketed_size,
)
from mpskit.allocator.mps_text import buffer_text, oom_text, watermark_text
from mpskit.errors import ArgumentError
from mpskit.versions import has

__all__ = ["DEFAULT_HIGH", "DEFAULT_LOW", "CachingMps", "MpsAllocator", "PlacementMps"]

DEFAULT_HIGH = 1.7
DEFAULT_LOW = 1.4
_RATIO_BOUND = 2.0
_SCALAR = 8  # requests up to this many bytes are shared even where tensors are private

# The block that stands for a request of no bytes: torch makes no buffer for it.
_NOTHING = 0


class MpsAllocator(ABC):
    """What every version of MPSAllocator has: counters, watermarks and the out-of-memory text.

    ``other_bytes`` is what Metal counts for the process beside the heaps (MPSGraph's own buffers);
    whoever knows it may set it.
    """

    def __init__(
        self,
        torch_version: str,
        *,
        recommended_bytes: int | None,
        max_buffer_bytes: int | None,
        high: float,
        low: float,
    ) -> None:
        self.other_bytes = 0
        self._torch = torch_version
        self._recommended = recommended_bytes
        self._max_buffer = max_buffer_bytes
        self._limit: int | None = None
        self._low_limit: int | None = None
        self._high = self._low = 0.0
        self._live = self._peak_live = 0
        self._heaps = self._peak_driver = 0
        self._keys = _NOTHING
        self.set_high_watermark(high)
        self._set_low_watermark(low)

    def set_high_watermark(self, ratio: float) -> None:
        """Set the hard limit to ``ratio`` times the recommended size; 0 means none.

        This is ``torch.mps.set_per_process_memory_fraction``: the low watermark stays as it is,
        even if it is then above the high one.

        Raises:
            WatermarkError: the ratio is not in 0 to 2.
        """
        self._limit = self._watermark("high", ratio, _RATIO_BOUND)
        self._high = ratio

    def _set_low_watermark(self, ratio: float) -> None:
        self._low_limit = self._watermark("low", ratio, self._high or _RATIO_BOUND)
        self._low = ratio

    def _watermark(self, which: str, ratio: float, bound: float) -> int | None:
        if not 0.0 <= ratio <= bound:
            raise WatermarkError(watermark_text(which, ratio), given=ratio)
        unlimited = ratio == 0.0 or self._recommended is None
        return None if unlimited or self._recommended is None else int(ratio * self._recommended)

    @property
    def limit_bytes(self) -> int | None:
        """The hard limit on ``driver_bytes``; None without one."""
        return self._limit

    @property
    def low_limit_bytes(self) -> int | None:
        """The soft limit from which on cached memory is collected; None without one."""
        return self._low_limit

    @property
    def high_ratio(self) -> float:
        """The high watermark ratio in force."""
        return self._high

    @property
    def low_ratio(self) -> float:
        """The low watermark ratio in force."""
        return self._low

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
        """Start both peaks again from what is held now."""
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
        """Count a heap that went back to Metal."""
        self._peak_driver = max(self._peak_driver, self.driver_bytes)
        self._heaps -= size

    def next_key(self) -> int:
        """Return a new number for a buffer or a heap."""
        self._keys += 1
        return self._keys

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Take ``size`` bytes and return the block's number (0 for a request of no bytes).

        Raises:
            AllocatorLimitError: the high watermark is reached even with the cache emptied.
            BufferTooLargeError: ``size`` is Metal's ``maxBufferLength`` or more.
            ArgumentError: ``size`` is negative.
        """

    @abstractmethod
    def free(self, block: int) -> None:
        """Give a block back to its pool's cache.

        Raises:
            ArgumentError: the block is not allocated.
        """

    @abstractmethod
    def empty_cache(self) -> None:
        """Give back to Metal every heap that no live buffer is in."""

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


class CachingMps(MpsAllocator):
    """MPSAllocator to torch 2.13: whole buffers are cached and never cut.

    To 2.12 tensors live in private storage and requests up to 8 bytes, on unified memory, in
    shared storage; from 2.13 everything is shared.
    """

    def __init__(
        self,
        torch_version: str,
        *,
        recommended_bytes: int | None,
        max_buffer_bytes: int | None,
        high: float,
        low: float,
        unified: bool,
    ) -> None:
        super().__init__(
            torch_version,
            recommended_bytes=recommended_bytes,
            max_buffer_bytes=max_buffer_bytes,
            high=high,
            low=low,
        )
        self.buffers: dict[int, Buffer] = {}
        xlarge = XLARGE_HEAP if unified else XLARGE_HEAP_DISCRETE
        shared = has("mps.shared_storage", torch_version)
        self._small = CachingPool(self, small=True, shared=shared, xlarge=xlarge)
        self._large = CachingPool(self, small=False, shared=shared, xlarge=xlarge)
        self._scalars = self._small
        if unified and not shared:
            self._scalars = CachingPool(self, small=True, shared=True, xlarge=xlarge)
        self._pools = tuple(dict.fromkeys((self._small, self._large, self._scalars)))

    def allocate(self, size: int) -> int:  # noqa: D102 - the base says it
        if size <= 0 or (self._max_buffer is not None and size >= self._max_buffer):
            self._check(size)
            return _NOTHING
        aligned = aligned_size(size)
        pool = self._small if aligned <= MAX_SMALL else self._large
        if size <= _SCALAR:
            pool = self._scalars
        pressure = self._low_limit is not None and self._pressed(small=pool.small)
        buffer, carved = pool.reuse(aligned) if self.fits(aligned) else (None, False)
        if buffer is None:
            buffer = self._obtain(pool, aligned, pressure=pressure and not carved)
        buffer.in_use = True
        # A buffer taken from the cache counts with its own size, which may be the larger one.
        self._live += buffer.size
        if self._live > self._peak_live:
            self._peak_live = self._live
        return buffer.key

    def free(self, block: int) -> None:  # noqa: D102 - the base says it
        if block == _NOTHING:
            return
        buffer = self.buffers.get(block)
        if buffer is None or not buffer.in_use:
            raise ArgumentError(f"block {block} is not allocated", given=block)
        buffer.in_use = False
        self._live -= buffer.size
        buffer.pool.give(buffer)

    def empty_cache(self) -> None:  # noqa: D102 - the base says it
        for pool in self._pools:
            pool.release_all()

    def _obtain(self, pool: CachingPool, size: int, *, pressure: bool) -> Buffer:
        """Make room step by step, as torch does on a miss, or raise."""
        if pressure and size < pool.cached_bytes:
            self._collect(pool)
        buffer = pool.place(size, pressure=pressure)
        if buffer is None and pool.release_enough(size):
            buffer = pool.place(size, pressure=pressure)
        if buffer is None:
            self.empty_cache()
            buffer = pool.place(size, pressure=pressure)
        if buffer is None:
            raise self._limit_error(size, shared=pool.shared)
        return buffer

    def _collect(self, pool: CachingPool) -> None:
        if self._low_limit is not None and self.driver_bytes >= self._low_limit:
            pool.collect(self.driver_bytes - self._low_limit)


class PlacementMps(MpsAllocator):
    """MPSAllocator from torch 2.14: sizes in buckets, heaps that are cut and joined."""

    def __init__(
        self,
        torch_version: str,
        *,
        recommended_bytes: int | None,
        max_buffer_bytes: int | None,
        high: float,
        low: float,
    ) -> None:
        super().__init__(
            torch_version,
            recommended_bytes=recommended_bytes,
            max_buffer_bytes=max_buffer_bytes,
            high=high,
            low=low,
        )
        self.blocks: dict[int, Block] = {}
        self._small = PlacementPool(self, small=True)
        self._large = PlacementPool(self, small=False)

    def allocate(self, size: int) -> int:  # noqa: D102 - the base says it
        if size <= 0 or (self._max_buffer is not None and size >= self._max_buffer):
            self._check(size)
            return _NOTHING
        rounded = bucketed_size(aligned_size(size), self._max_buffer)
        pool = self._small if rounded <= MAX_SMALL else self._large
        pressure = self._low_limit is not None and self._pressed(small=pool.small)
        block = pool.reuse(rounded) if self.fits(rounded) else None
        if block is None:
            block = self._obtain(pool, rounded, pressure=pressure)
        block.in_use = True
        self._live += block.size
        if self._live > self._peak_live:
            self._peak_live = self._live
        return block.key

    def free(self, block: int) -> None:  # noqa: D102 - the base says it
        if block == _NOTHING:
            return
        found = self.blocks.get(block)
        if found is None or not found.in_use:
            raise ArgumentError(f"block {block} is not allocated", given=block)
        found.in_use = False
        self._live -= found.size
        found.pool.give(found)

    def empty_cache(self) -> None:  # noqa: D102 - the base says it
        self._small.release_heaps()
        self._large.release_heaps()

    def _obtain(self, pool: PlacementPool, size: int, *, pressure: bool) -> Block:
        """Make room step by step, as torch does on a miss, or raise."""
        if pressure and size < pool.free_bytes:
            self._collect(pool)
        if self.fits(size):
            return pool.place(size, pressure=pressure)
        if pool.release_heaps(size) and self.fits(size):
            return pool.place(size, pressure=pressure)
        self.empty_cache()
        if self.fits(size):
            return pool.reuse(size) or pool.place(size, pressure=pressure)
        raise self._limit_error(size, shared=True)

    def _collect(self, pool: PlacementPool) -> None:
        if self._low_limit is not None and self.driver_bytes >= self._low_limit:
            pool.release_heaps(self.driver_bytes - self._low_limit)
