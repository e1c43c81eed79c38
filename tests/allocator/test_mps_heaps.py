"""The pool of whole buffers (torch to 2.13), below the allocator's own order of steps."""

from __future__ import annotations

import pytest

from mpskit._base.sizes import GIB, KIB, MIB
from mpskit.allocator.mps import CachingMps
from mpskit.allocator.mps_heaps import CachingPool, Heap
from mpskit.allocator.mps_rounding import XLARGE_HEAP


def _pool() -> tuple[CachingMps, CachingPool]:
    account = CachingMps("2.13.0")
    return account, CachingPool(account, small=False, shared=True, xlarge=XLARGE_HEAP)


def _cached(pool: CachingPool, *sizes: int) -> None:
    buffers = [pool.place(size, pressure=False) for size in sizes]
    for buffer in buffers:
        assert buffer is not None
        pool.give(buffer)


def test_a_heap_joins_what_comes_back() -> None:
    heap = Heap(1, MIB, shared=True)
    offsets = [heap.place(256 * KIB) for _ in range(4)]
    assert offsets == [0, 256 * KIB, 512 * KIB, 768 * KIB]
    assert heap.available == 0
    for offset in (0, 512 * KIB, 256 * KIB):
        heap.release(offset, 256 * KIB)
    assert heap.free == [(0, 768 * KIB)]
    assert heap.available == 768 * KIB


def test_room_is_measured_from_a_page_on() -> None:
    heap = Heap(1, MIB, shared=True)
    heap.place(256)
    assert heap.available == MIB - 16 * KIB
    heap.place(MIB - 16 * KIB)
    assert heap.available == 0
    assert heap.free == [(MIB - 16 * KIB + 256, MIB)]


@pytest.mark.parametrize(("size", "left"), [(20 * MIB, GIB), (600 * MIB, 0)])
def test_collection_gives_back_only_heaps_of_one_buffer(size: int, left: int) -> None:
    account, pool = _pool()
    _cached(pool, size)
    pool.collect(1)
    assert (account.heap_bytes, pool.cached_bytes) == (left, 0)


def test_collection_takes_the_oldest_first_and_stops_at_its_target() -> None:
    account, pool = _pool()
    _cached(pool, 600 * MIB)
    pool.reuse(900 * MIB)  # a request that finds nothing makes the first buffer older
    _cached(pool, 520 * MIB)
    pool.collect(100 * MIB)
    assert account.heap_bytes == 520 * MIB
    pool.collect(10 * GIB)
    assert account.heap_bytes == 0


def test_enough_is_the_one_that_would_do_or_the_largest() -> None:
    account, pool = _pool()
    assert pool.release_enough(MIB) is False
    _cached(pool, 512 * MIB, 520 * MIB, 600 * MIB)
    assert pool.release_enough(515 * MIB)
    assert account.heap_bytes == (512 + 600) * MIB
    assert pool.release_enough(700 * MIB)
    assert account.heap_bytes == 0
    _cached(pool, 512 * MIB)
    assert not pool.release_enough(513 * MIB)
    assert account.heap_bytes == 0
