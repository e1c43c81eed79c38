"""The CUDA caching allocator's rules, each by a sequence small enough to follow by hand."""

from __future__ import annotations

import pytest

from mpskit._base.sizes import GIB, MIB
from mpskit.allocator import AllocatorLimitError
from mpskit.allocator.cuda import CudaAllocator
from mpskit.errors import ArgumentError


@pytest.mark.parametrize(
    ("size", "live", "reserved"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        # What is left of a segment of one's own is below 1 MiB or at most 2 MiB: cut above 1 MiB.
        (10 * MIB + 512, 10 * MIB + 512, 12 * MIB),
        (11 * MIB + 512, 12 * MIB, 12 * MIB),
    ],
)
def test_one_request(size: int, live: int, reserved: int) -> None:
    cuda = CudaAllocator()
    cuda.allocate(size)
    assert (cuda.live_bytes, cuda.driver_bytes) == (live, reserved)


def test_small_blocks_share_a_segment_and_join_again() -> None:
    cuda = CudaAllocator()
    blocks = [cuda.allocate(MIB // 2) for _ in range(4)]
    assert cuda.driver_bytes == 2 * MIB
    for block in (blocks[0], blocks[2], blocks[1], blocks[3]):
        cuda.free(block)
    # Joined, the segment serves a request of 1 MiB, twice.
    cuda.allocate(MIB)
    cuda.allocate(MIB)
    assert cuda.driver_bytes == 2 * MIB


def test_a_large_block_is_not_cut_for_the_last_mebibyte() -> None:
    cuda = CudaAllocator()
    cuda.free(cuda.allocate(20 * MIB))
    cuda.allocate(19 * MIB)
    assert cuda.live_bytes == 20 * MIB  # exactly 1 MiB would be left
    cuda = CudaAllocator()
    cuda.free(cuda.allocate(20 * MIB))
    cuda.allocate(19 * MIB - 512)
    assert cuda.live_bytes == 19 * MIB - 512
    assert cuda.driver_bytes == 20 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    cuda = CudaAllocator()
    large, small = cuda.allocate(40 * MIB), cuda.allocate(12 * MIB)
    cuda.free(large)
    cuda.free(small)
    cuda.allocate(12 * MIB)
    cuda.allocate(40 * MIB)
    assert cuda.driver_bytes == 52 * MIB


def test_empty_cache_keeps_segments_with_a_live_block() -> None:
    cuda = CudaAllocator()
    kept, gone = cuda.allocate(12 * MIB), cuda.allocate(14 * MIB)
    tiny = cuda.allocate(512)
    cuda.free(gone)
    cuda.empty_cache()
    assert cuda.driver_bytes == 14 * MIB
    cuda.free(kept)
    cuda.free(tiny)
    cuda.empty_cache()
    assert (cuda.live_bytes, cuda.driver_bytes) == (0, 0)


def test_a_full_card_is_emptied_before_it_fails() -> None:
    cuda = CudaAllocator(total_bytes=100 * MIB)
    cuda.free(cuda.allocate(60 * MIB))
    cuda.allocate(80 * MIB)  # fits only once the cached 60 MiB are back
    assert cuda.driver_bytes == 80 * MIB
    with pytest.raises(AllocatorLimitError, match=r"Tried to allocate 40.00 MiB") as caught:
        cuda.allocate(40 * MIB)
    assert (caught.value.allocated, caught.value.max_allowed) == (80 * MIB, 100 * MIB)
    assert cuda.live_bytes == 80 * MIB


def test_peaks_and_wrong_use() -> None:
    cuda = CudaAllocator()
    block = cuda.allocate(GIB)
    cuda.free(block)
    assert (cuda.peak_live_bytes, cuda.peak_driver_bytes) == (GIB, GIB)
    cuda.empty_cache()
    cuda.reset_peaks()
    assert (cuda.peak_live_bytes, cuda.peak_driver_bytes) == (0, 0)
    with pytest.raises(ArgumentError, match="not allocated"):
        cuda.free(block)
    with pytest.raises(ArgumentError, match="-5"):
        cuda.allocate(-5)
