"""The pool that cuts and joins (torch from 2.14), below the allocator's own order of steps."""

from __future__ import annotations

from mpskit._base.sizes import GIB, MIB
from mpskit.allocator.mps import PlacementMps
from mpskit.allocator.mps_placement import Block, PlacementPool


def _pool(*, small: bool = False) -> tuple[PlacementMps, PlacementPool]:
    account = PlacementMps("2.14.0")
    return account, PlacementPool(account, small=small)


def _taken(pool: PlacementPool, *sizes: int) -> list[Block]:
    blocks = []
    for size in sizes:
        block = pool.reuse(size) or pool.place(size, pressure=False)
        block.in_use = True
        blocks.append(block)
    return blocks


def _freed(pool: PlacementPool, *blocks: Block) -> None:
    for block in blocks:
        block.in_use = False
        pool.give(block)


def test_a_request_is_cut_from_the_smallest_free_block() -> None:
    _, pool = _pool()
    blocks = _taken(pool, 20 * MIB, 12 * MIB, 40 * MIB, 12 * MIB)
    _freed(pool, blocks[0], blocks[2])
    (taken,) = _taken(pool, 16 * MIB)
    assert taken.offset == 0
    assert taken.next is not None
    assert taken.next.offset == 16 * MIB
    (tail,) = _taken(pool, 4 * MIB)
    assert tail.offset == 16 * MIB


def test_a_buffer_that_fits_as_it_is_comes_before_a_smaller_cut() -> None:
    _, pool = _pool()
    first, second = _taken(pool, 20 * MIB, 20 * MIB)
    _freed(pool, second)
    _freed(pool, first)
    (again,) = _taken(pool, 20 * MIB)
    assert again is first  # the lower key, among equals


def test_neighbours_are_joined_only_when_no_block_serves() -> None:
    account, pool = _pool()
    blocks = _taken(pool, *[8 * MIB] * 4)  # a full 32 MiB heap
    _freed(pool, *blocks[:3])
    (taken,) = _taken(pool, 8 * MIB)
    assert taken.offset == 0
    (joined,) = _taken(pool, 16 * MIB)
    assert (joined.offset, joined.size) == (8 * MIB, 16 * MIB)
    assert account.heap_bytes == 32 * MIB


def test_what_was_joined_is_one_block_from_then_on() -> None:
    account, pool = _pool()
    blocks = _taken(pool, *[8 * MIB] * 4)
    _freed(pool, *blocks)
    (joined,) = _taken(pool, 24 * MIB)
    assert (joined, joined.offset, joined.size) == (blocks[0], 0, 24 * MIB)
    assert set(account.blocks) == {joined.key, blocks[3].key}
    _freed(pool, joined)
    (whole,) = _taken(pool, 32 * MIB)
    assert (whole.size, account.heap_bytes) == (32 * MIB, 32 * MIB)
    assert pool.free_bytes == 0


def test_a_block_in_use_ends_a_run() -> None:
    account, pool = _pool()
    blocks = _taken(pool, *[8 * MIB] * 4)
    _freed(pool, blocks[0], blocks[2])
    _taken(pool, 12 * MIB)
    assert account.heap_bytes == 32 * MIB + GIB


def test_small_remainders_are_kept_in_the_small_pool() -> None:
    _, pool = _pool(small=True)
    (first,) = _taken(pool, 512)
    _taken(pool, 256)
    _freed(pool, first)
    (half,) = _taken(pool, 256)
    assert (half.offset, half.size) == (0, 256)


def test_heaps_go_back_oldest_first_until_the_target() -> None:
    account, pool = _pool()
    blocks = _taken(pool, 512 * MIB, 600 * MIB, 700 * MIB)
    _freed(pool, blocks[1], blocks[2])
    assert pool.release_heaps(1) == 600 * MIB
    assert account.heap_bytes == (512 + 700) * MIB
    assert pool.release_heaps() == 700 * MIB
    assert (account.heap_bytes, pool.free_bytes) == (512 * MIB, 0)
