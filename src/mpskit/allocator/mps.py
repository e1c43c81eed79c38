"""MPSAllocator by torch version: up to 2.12, 2.13, and from 2.14.

The order of steps follows ATen/mps/MPSAllocator.mm (``alloc_buffer_block``); the rules of the
pools are in ``mps_heaps`` (up to 2.13) and ``mps_placement`` (from 2.14).
"""

from __future__ import annotations

from mpskit.allocator.mps_base import NOTHING, UNBOUNDED, Limits, MpsAllocator
from mpskit.allocator.mps_heaps import Buffer, CachingPool
from mpskit.allocator.mps_placement import Block, PlacementPool
from mpskit.allocator.mps_rounding import (
    MAX_SMALL,
    XLARGE_HEAP,
    XLARGE_HEAP_DISCRETE,
    aligned_size,
    bucketed_size,
)
from mpskit.backends.versions import has
from mpskit.errors import ArgumentError

__all__ = ["CachingMps", "PlacementMps"]

_SCALAR = 8  # requests up to this many bytes are shared even where tensors are private


class CachingMps(MpsAllocator):
    """MPSAllocator up to torch 2.13: whole buffers are cached and never split.

    Up to 2.12 tensors are in private storage and, on unified memory, requests of up to 8 bytes in
    shared storage; in 2.13 everything is shared.
    """

    def __init__(
        self, torch_version: str, limits: Limits = UNBOUNDED, *, unified: bool = True
    ) -> None:
        super().__init__(torch_version, limits)
        self.buffers: dict[int, Buffer] = {}
        xlarge = XLARGE_HEAP if unified else XLARGE_HEAP_DISCRETE
        shared = has("mps.shared_storage", torch_version)
        self._small = CachingPool(self, small=True, shared=shared, xlarge=xlarge)
        self._large = CachingPool(self, small=False, shared=shared, xlarge=xlarge)
        self._scalars = self._small
        if unified and not shared:
            self._scalars = CachingPool(self, small=True, shared=True, xlarge=xlarge)
        self._pools = tuple(dict.fromkeys((self._small, self._large, self._scalars)))

    def allocate(self, size: int) -> int:  # noqa: D102 - documented in the base
        if size <= 0 or (self._max_buffer is not None and size >= self._max_buffer):
            self._check(size)
            return NOTHING
        aligned = aligned_size(size)
        pool = self._small if aligned <= MAX_SMALL else self._large
        if size <= _SCALAR:
            pool = self._scalars
        pressure = self._low_limit is not None and self._pressed(small=pool.small)
        fits = self._limit is None or self.fits(aligned)
        buffer, carved = pool.reuse(aligned) if fits else (None, False)
        if buffer is None:
            buffer = self._obtain(pool, aligned, pressure=pressure and not carved)
        buffer.in_use = True
        # A buffer from the cache counts with its own size, which may be larger than the request.
        self._live += buffer.size
        if self._live > self._peak_live:
            self._peak_live = self._live
        return buffer.key

    def free(self, block: int) -> None:  # noqa: D102 - documented in the base
        if block == NOTHING:
            return
        buffer = self.buffers.get(block)
        if buffer is None or not buffer.in_use:
            raise ArgumentError(f"block {block} is not allocated", given=block)
        buffer.in_use = False
        self._live -= buffer.size
        buffer.pool.give(buffer)

    def empty_cache(self) -> None:  # noqa: D102 - documented in the base
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
    """MPSAllocator from torch 2.14: bucketed sizes, heaps that are split and coalesced."""

    def __init__(self, torch_version: str, limits: Limits = UNBOUNDED) -> None:
        super().__init__(torch_version, limits)
        self.blocks: dict[int, Block] = {}
        self._small = PlacementPool(self, small=True)
        self._large = PlacementPool(self, small=False)

    def allocate(self, size: int) -> int:  # noqa: D102 - documented in the base
        if size <= 0 or (self._max_buffer is not None and size >= self._max_buffer):
            self._check(size)
            return NOTHING
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

    def free(self, block: int) -> None:  # noqa: D102 - documented in the base
        if block == NOTHING:
            return
        found = self.blocks.get(block)
        if found is None or not found.in_use:
            raise ArgumentError(f"block {block} is not allocated", given=block)
        found.in_use = False
        self._live -= found.size
        found.pool.give(found)

    def empty_cache(self) -> None:  # noqa: D102 - documented in the base
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
