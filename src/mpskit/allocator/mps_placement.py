"""Pools that place buffers themselves: MPSAllocator from torch 2.14.

Heaps are of Metal's placement type. The pool keeps each heap as a chain of blocks by offset, splits
a request off a free block and coalesces neighbours only when no single block is large enough. A
block that was used keeps its Metal buffer until its range is split or coalesced. Rules:
pytorch#190438 and ATen/mps/MPSAllocator.mm of 2.15-dev (``get_free_buffer``, ``split_free_block``,
``coalesce_free_blocks``, ``release_free_heaps``). One stream; GPU work is taken to finish at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol

from mpskit.allocator.mps_rounding import ALIGNMENT, MAX_SMALL, heap_size

__all__ = ["Block", "BlockAccount", "PlacementHeap", "PlacementPool"]


class BlockAccount(Protocol):
    """What a pool needs of the allocator that it belongs to."""

    blocks: dict[int, Block]

    def grow(self, size: int) -> None:
        """Count a heap that Metal has made."""

    def shrink(self, size: int) -> None:
        """Count a heap that is released to Metal."""

    def next_key(self) -> int:
        """Return a new number; numbers stand for addresses where torch sorts by address."""
        ...


class PlacementHeap:
    """One heap: the first block of its chain, its free bytes, a bound on its longest free run."""

    __slots__ = ("first", "free_bytes", "key", "longest_run", "total")

    def __init__(self, key: int, total: int) -> None:
        self.key = key
        self.total = total
        self.free_bytes = total
        self.longest_run = total
        self.first: Block | None = None


class Block:
    """A range of a heap; ``placed`` says whether a Metal buffer covers exactly this range."""

    __slots__ = ("heap", "in_use", "key", "next", "offset", "placed", "pool", "size")

    def __init__(
        self, key: int, offset: int, size: int, heap: PlacementHeap, pool: PlacementPool
    ) -> None:
        self.key = key
        self.offset = offset
        self.size = size
        self.heap = heap
        self.pool = pool
        self.next: Block | None = None
        self.in_use = False
        self.placed = False


class PlacementPool:
    """Blocks of one kind (small or large) with their heaps; always shared storage."""

    shared = True

    def __init__(self, account: BlockAccount, *, small: bool) -> None:
        self.small = small
        self.free_bytes = 0
        self.heaps: dict[int, PlacementHeap] = {}
        self._account = account
        # A remainder of at least this size becomes a block of its own.
        self._min_split = ALIGNMENT if small else MAX_SMALL
        self._free: list[tuple[int, int]] = []  # (size, block key)
        self._placed: list[tuple[int, int]] = []  # those of _free that still have their buffer

    def reuse(self, size: int) -> Block | None:
        """Return a free block for ``size`` bytes: a placed, a split or a coalesced one."""
        index = bisect_left(self._placed, (size, 0))
        if index < len(self._placed) and self._placed[index][0] - size < self._min_split:
            return self._cut(self._account.blocks[self._placed[index][1]], size)
        index = bisect_left(self._free, (size, 0))
        if index < len(self._free):
            return self._cut(self._account.blocks[self._free[index][1]], size)
        return self._join(size)

    def place(self, size: int, *, pressure: bool) -> Block:
        """Make a heap and split the request off it."""
        total, _ = heap_size(size, pressure=pressure)
        heap = PlacementHeap(self._account.next_key(), total)
        heap.first = self._new_block(0, total, heap)
        self.heaps[heap.key] = heap
        self.free_bytes += total
        self._account.grow(total)
        return self._cut(heap.first, size)

    def give(self, block: Block) -> None:
        """Put a freed block back; neighbours are coalesced only when needed."""
        insort(self._free, (block.size, block.key))
        if block.placed:
            insort(self._placed, (block.size, block.key))
        self.free_bytes += block.size
        heap = block.heap
        heap.free_bytes += block.size
        heap.longest_run = heap.free_bytes

    def release_heaps(self, target: int | None = None) -> int:
        """Release heaps without a live block, the oldest first, until ``target`` bytes are."""
        released = 0
        for heap in [heap for heap in self.heaps.values() if heap.free_bytes == heap.total]:
            if target is not None and released >= target:
                break
            self._release(heap)
            released += heap.total
        return released

    def _release(self, heap: PlacementHeap) -> None:
        block = heap.first
        while block is not None:
            self._take(block)
            del self._account.blocks[block.key]
            block = block.next
        del self.heaps[heap.key]
        self.free_bytes -= heap.total
        self._account.shrink(heap.total)

    def _cut(self, block: Block, size: int) -> Block:
        """Take a free block for ``size`` bytes and split off a large remainder."""
        self._take(block)
        heap, rest = block.heap, block.size - size
        used = size if rest >= self._min_split else block.size
        self.free_bytes -= used
        heap.free_bytes -= used
        if used != block.size:
            remainder = self._new_block(block.offset + size, rest, heap)
            remainder.next, block.next = block.next, remainder
            block.size = size
        block.placed = True
        heap.longest_run = min(heap.longest_run, heap.free_bytes)
        return block

    def _join(self, size: int) -> Block | None:
        """Coalesce free neighbours that are large enough together, if there are any."""
        for heap in self.heaps.values():
            if heap.longest_run < size:
                continue
            run = longest = 0
            start: Block | None = None
            block = heap.first
            while block is not None:
                run = 0 if block.in_use else run + block.size
                start = None if block.in_use else start or block
                longest = max(longest, run)
                if start is not None and run >= size:
                    return self._cut(self._merged(start, block, run), size)
                block = block.next
            heap.longest_run = longest
        return None

    def _merged(self, first: Block, last: Block, size: int) -> Block:
        if first is last:
            return first
        after = last.next
        block: Block | None = first
        while block is not after and block is not None:
            self._take(block)
            if block is not first:
                del self._account.blocks[block.key]
            block = block.next
        first.size, first.next, first.placed = size, after, False
        insort(self._free, (size, first.key))
        return first

    def _new_block(self, offset: int, size: int, heap: PlacementHeap) -> Block:
        block = Block(self._account.next_key(), offset, size, heap, self)
        self._account.blocks[block.key] = block
        insort(self._free, (size, block.key))
        return block

    def _take(self, block: Block) -> None:
        entry = (block.size, block.key)
        del self._free[bisect_left(self._free, entry)]
        if block.placed:
            del self._placed[bisect_left(self._placed, entry)]
