"""Pools of whole buffers: MPSAllocator up to torch 2.13.

Heaps are of Metal's automatic type: torch asks a heap for a buffer and Metal places it. A freed
buffer stays whole and in place in the pool's cache; only a release returns its range to the heap.
Rules: ``get_free_buffer``, ``get_free_heap``, ``release_buffer`` and
``garbage_collect_cached_buffers`` of ATen/mps/MPSAllocator.mm (seen at pytorch 57ba412 and in
the 2.13.0 wheel's header). Where Metal puts a buffer inside an automatic heap is not public:
this model takes the lowest range that fits.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol

from mpskit.allocator.mps_rounding import LARGE_HEAP, PAGE, heap_size

__all__ = ["Buffer", "CachingPool", "Heap", "HeapAccount"]


class HeapAccount(Protocol):
    """What a pool needs of the allocator that it belongs to."""

    buffers: dict[int, Buffer]

    def grow(self, size: int) -> None:
        """Count a heap that Metal has made."""

    def shrink(self, size: int) -> None:
        """Count a heap that is released to Metal."""

    def fits(self, size: int) -> bool:
        """Return whether a buffer of that size stays under the high watermark."""
        ...

    def next_key(self) -> int:
        """Return a new number; numbers stand for addresses where torch sorts by address."""
        ...


class Heap:
    """One Metal heap: its free ranges by offset, and the largest page-aligned buffer that fits."""

    __slots__ = ("available", "buffers", "free", "key", "shared", "total")

    def __init__(self, key: int, total: int, *, shared: bool) -> None:
        self.key = key
        self.total = total
        self.shared = shared
        self.buffers = 0
        self.free = [(0, total)]
        self.available = total

    def place(self, size: int) -> int:
        """Take the lowest range of ``size`` bytes and return its offset."""
        for index, (start, end) in enumerate(self.free):  # noqa: B007 - the first that fits
            if end - start >= size:
                break
        else:
            raise ValueError(size)
        self.free[index : index + 1] = [(start + size, end)] if end - start > size else []
        self.buffers += 1
        self._measure()
        return start

    def release(self, offset: int, size: int) -> None:
        """Free a range and merge it with its free neighbours."""
        start, end = offset, offset + size
        index = bisect_left(self.free, (offset, 0))
        last = index
        if last < len(self.free) and self.free[last][0] == end:
            end = self.free[last][1]
            last += 1
        if index and self.free[index - 1][1] == start:
            index -= 1
            start = self.free[index][0]
        self.free[index:last] = [(start, end)]
        self.buffers -= 1
        self._measure()

    def _measure(self) -> None:
        # Metal's maxAvailableSizeWithAlignment(page).
        longest = 0
        for start, end in self.free:
            room = end - -(-start // PAGE) * PAGE
            if room > longest:
                longest = room
        self.available = longest


class Buffer:
    """One Metal buffer, in use or cached."""

    __slots__ = ("cached_at", "heap", "in_use", "key", "offset", "pool", "size")

    def __init__(self, key: int, size: int, heap: Heap, offset: int, pool: CachingPool) -> None:
        self.key = key
        self.size = size
        self.heap = heap
        self.offset = offset
        self.pool = pool
        self.in_use = False
        self.cached_at = 0


class CachingPool:
    """Buffers of one kind (small or large, private or shared) with their heaps."""

    def __init__(self, account: HeapAccount, *, small: bool, shared: bool, xlarge: int) -> None:
        self.small = small
        self.shared = shared
        self.cached_bytes = 0
        self.heaps: dict[int, Heap] = {}
        self._xlarge = xlarge
        self._account = account
        self._cached: list[tuple[int, int]] = []  # (size, buffer key), as torch's set is sorted
        self._by_available: list[tuple[int, int]] = []  # (available, heap key)
        self._requests = 0

    def reuse(self, size: int) -> tuple[Buffer | None, bool]:
        """Return a cached buffer for ``size`` bytes, and whether one was released to make room.

        The smallest cached buffer that is large enough is taken if it is at most 32 MiB larger.
        A larger one is released, so that its heap has room, unless another heap has room already.
        """
        self._requests += 1
        index = bisect_left(self._cached, (size, 0))
        if index == len(self._cached):
            return None, False
        found, key = self._cached[index]
        if found <= size + LARGE_HEAP:
            del self._cached[index]
            self.cached_bytes -= found
            return self._account.buffers[key], False
        if self._by_available and self._by_available[-1][0] >= size:
            return None, False  # a heap has room
        self.release(self._account.buffers[key], drop_heap=False)
        return None, True

    def give(self, buffer: Buffer) -> None:
        """Put a freed buffer into the cache."""
        buffer.cached_at = self._requests
        insort(self._cached, (buffer.size, buffer.key))
        self.cached_bytes += buffer.size

    def place(self, size: int, *, pressure: bool) -> Buffer | None:
        """Make a buffer in a heap with room, or in a new heap; None at the high watermark."""
        if not self._account.fits(size):
            return None
        index = bisect_left(self._by_available, (size, 0))
        if index < len(self._by_available):
            heap = self.heaps[self._by_available.pop(index)[1]]
        else:
            heap = self._new_heap(size, pressure=pressure)
        key = self._account.next_key()
        buffer = self._account.buffers[key] = Buffer(key, size, heap, heap.place(size), self)
        insort(self._by_available, (heap.available, heap.key))
        return buffer

    def release(self, buffer: Buffer, *, drop_heap: bool = True) -> None:
        """Return a cached buffer's range to its heap, and the heap to Metal if that empties it."""
        heap = buffer.heap
        del self._cached[bisect_left(self._cached, (buffer.size, buffer.key))]
        del self._account.buffers[buffer.key]
        self.cached_bytes -= buffer.size
        self._unlist(heap)
        heap.release(buffer.offset, buffer.size)
        if drop_heap and not heap.buffers:
            del self.heaps[heap.key]
            self._account.shrink(heap.total)
        else:
            insort(self._by_available, (heap.available, heap.key))

    def release_enough(self, size: int) -> bool:
        """Release one cached buffer that is large enough, or the largest until their sum is."""
        if not self._cached:
            return False
        index = bisect_left(self._cached, (size, 0))
        if index < len(self._cached):
            self.release(self._account.buffers[self._cached[index][1]])
            return True
        released = 0
        while released < size and self._cached:
            found, key = self._cached[-1]
            released += found
            self.release(self._account.buffers[key])
        return released >= size

    def release_all(self) -> None:
        """Release every cached buffer; heaps with live buffers stay."""
        for _, key in self._cached.copy():
            self.release(self._account.buffers[key])

    def collect(self, target: int) -> None:
        """Release cached buffers of at least average age until ``target`` bytes are released.

        A buffer's age is the number of requests to the pool since it was freed. A heap that
        several buffers share is kept even if this empties it, as torch keeps it.
        """
        ages = {key: self._age(key) for _, key in self._cached}
        reclaimed, freed = 0, True
        while reclaimed < target and freed and ages:
            threshold, freed = sum(ages.values()) / len(ages), False
            for size, key in self._cached.copy():
                if reclaimed >= target or not ages or ages[key] < threshold:
                    continue
                buffer = self._account.buffers[key]
                self.release(buffer, drop_heap=not buffer.heap.shared)
                del ages[key]
                reclaimed, freed = reclaimed + size, True

    def _age(self, key: int) -> int:
        return self._requests - self._account.buffers[key].cached_at

    def _new_heap(self, size: int, *, pressure: bool) -> Heap:
        total, shared = heap_size(size, pressure=pressure, xlarge=self._xlarge)
        heap = Heap(self._account.next_key(), total, shared=shared)
        self.heaps[heap.key] = heap
        self._account.grow(total)
        return heap

    def _unlist(self, heap: Heap) -> None:
        del self._by_available[bisect_left(self._by_available, (heap.available, heap.key))]
