"""The caching allocator of CUDA and XPU: segments from the driver, cut into blocks and joined.

Rules and constants of ``c10/cuda/CUDACachingAllocator.cpp`` as it is without settings (no
expandable segments, no max_split_size, no rounding to powers of two), which are those of
``c10/xpu/XPUCachingAllocator.cpp`` too: 512-byte rounding; up to
1 MiB from 2 MiB segments, below 10 MiB from 20 MiB segments, above in segments of whole 2 MiB;
the smallest free block that fits; what is left is cut off from 512 bytes in small segments and
above 1 MiB in large ones. One stream. The driver's context and library workspaces are not counted.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from mpskit._base.sizes import GIB, KIB, MIB
from mpskit.allocator.errors import AllocatorLimitError
from mpskit.errors import ArgumentError

__all__ = ["CudaAllocator"]

_ROUND = 512
_MAX_SMALL = MIB
_MIN_OWN = 10 * MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_ROUND_OWN = 2 * MIB


class _Block:
    __slots__ = ("in_use", "key", "next", "prev", "size", "small")

    def __init__(self, key: int, size: int, *, small: bool) -> None:
        self.key = key
        self.size = size
        self.small = small
        self.in_use = False
        self.prev: _Block | None = None
        self.next: _Block | None = None


class CudaAllocator:
    """A model of torch's caching allocator for CUDA and XPU.

    Args:
        total_bytes: the memory that segments may take together; None for no limit.
        title: the backend's name in the error.
    """

    def __init__(self, *, total_bytes: int | None = None, title: str = "CUDA") -> None:
        self._total = total_bytes
        self._title = title
        self._blocks: dict[int, _Block] = {}
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._keys = 0
        self._live = self._peak_live = 0
        self._reserved = self._peak_reserved = 0

    @property
    def live_bytes(self) -> int:
        """Rounded bytes in use: ``torch.cuda.memory_allocated()``."""
        return self._live

    @property
    def heap_bytes(self) -> int:
        """Bytes of all segments: ``torch.cuda.memory_reserved()``."""
        return self._reserved

    @property
    def driver_bytes(self) -> int:
        """The same as ``heap_bytes``; the CUDA context comes on top on a real card."""
        return self._reserved

    @property
    def peak_live_bytes(self) -> int:
        """The largest ``live_bytes``: ``torch.cuda.max_memory_allocated()``."""
        return self._peak_live

    @property
    def peak_driver_bytes(self) -> int:
        """The largest ``driver_bytes``: ``torch.cuda.max_memory_reserved()``."""
        return self._peak_reserved

    def reset_peaks(self) -> None:
        """Reset both peaks to the current figures."""
        self._peak_live, self._peak_reserved = self._live, self._reserved

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return the block's number (0 for a request of no bytes).

        Raises:
            AllocatorLimitError: no new segment fits, even after the cache is emptied.
            ArgumentError: ``size`` is negative.
        """
        if size <= 0:
            if size < 0:
                raise ArgumentError(f"cannot allocate {size} bytes", given=size)
            return 0
        rounded = -(-size // _ROUND) * _ROUND
        block = self._cut(self._found(rounded) or self._segment(rounded), rounded)
        block.in_use = True
        self._live += block.size
        self._peak_live = max(self._peak_live, self._live)
        return block.key

    def free(self, block: int) -> None:
        """Free a block and merge it with its free neighbours.

        Raises:
            ArgumentError: the block is not allocated.
        """
        if block == 0:
            return
        found = self._blocks.get(block)
        if found is None or not found.in_use:
            raise ArgumentError(f"block {block} is not allocated", given=block)
        found.in_use = False
        self._live -= found.size
        self._absorb(found, found.prev)
        self._absorb(found, found.next)
        insort(self._free[found.small], (found.size, found.key))

    def empty_cache(self) -> None:
        """Return every segment without a live block to the driver."""
        for blocks in self._free.values():
            for entry in blocks.copy():
                block = self._blocks[entry[1]]
                if block.prev is None and block.next is None:
                    blocks.remove(entry)
                    del self._blocks[block.key]
                    self._reserved -= block.size

    def _found(self, size: int) -> _Block | None:
        blocks = self._free[size <= _MAX_SMALL]
        index = bisect_left(blocks, (size, 0))
        return self._blocks[blocks.pop(index)[1]] if index < len(blocks) else None

    def _segment(self, size: int) -> _Block:
        small = size <= _MAX_SMALL
        total = _SMALL_SEGMENT if small else _LARGE_SEGMENT
        if size >= _MIN_OWN:
            total = -(-size // _ROUND_OWN) * _ROUND_OWN
        if not self._fits(total):
            self.empty_cache()
        if not self._fits(total):
            raise self._limit_error(size)
        self._reserved += total
        self._peak_reserved = max(self._peak_reserved, self._reserved)
        return self._new_block(total, small=small)

    def _fits(self, size: int) -> bool:
        return self._total is None or self._reserved + size <= self._total

    def _limit_error(self, size: int) -> AllocatorLimitError:
        return AllocatorLimitError(
            f"{self._title} out of memory. Tried to allocate {_size_text(size)}.",
            allocated=self._reserved,
            other=0,
            max_allowed=self._total,
            requested=size,
        )

    def _cut(self, block: _Block, size: int) -> _Block:
        rest = block.size - size
        if rest < _ROUND or (not block.small and rest <= _MAX_SMALL):
            return block
        remainder = self._new_block(rest, small=block.small)
        remainder.prev, remainder.next = block, block.next
        if block.next is not None:
            block.next.prev = remainder
        block.next, block.size = remainder, size
        insort(self._free[block.small], (rest, remainder.key))
        return block

    def _absorb(self, block: _Block, neighbour: _Block | None) -> None:
        """Merge a freed block with a neighbour, if that one is free."""
        if neighbour is None or neighbour.in_use:
            return
        free = self._free[neighbour.small]
        del free[bisect_left(free, (neighbour.size, neighbour.key))]
        del self._blocks[neighbour.key]
        block.size += neighbour.size
        if neighbour is block.prev:
            block.prev = neighbour.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            block.next = neighbour.next
            if block.next is not None:
                block.next.prev = block

    def _new_block(self, size: int, *, small: bool) -> _Block:
        self._keys += 1
        block = _Block(self._keys, size, small=small)
        self._blocks[block.key] = block
        return block


def _size_text(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size > unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
