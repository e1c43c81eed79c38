"""Rounding and heap sizes, from the constants of ATen/mps/MPSAllocator.h."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, KIB, MIB
from mpskit.allocator.mps_rounding import aligned_size, bucketed_size, heap_size


@pytest.mark.parametrize(
    ("size", "aligned"),
    [(1, 256), (4, 256), (256, 256), (257, 512), (1024, 1024), (MIB, MIB), (MIB + 1, MIB + 256)],
)
def test_a_request_takes_whole_256_bytes(size: int, aligned: int) -> None:
    assert aligned_size(size) == aligned


@pytest.mark.parametrize(
    ("aligned", "bucket"),
    [
        (256, 256),
        (MIB, MIB),
        (MIB + 256, MIB + 32 * KIB),
        (3 * MIB + 256, 3 * MIB + 64 * KIB),
        (20 * MIB, 20 * MIB),
        (20 * MIB + 256, 20 * MIB + 512 * KIB),
        (600 * MIB, 608 * MIB),
        (GIB + 256, GIB + 32 * MIB),
    ],
)
def test_large_sizes_go_up_to_a_bucket(aligned: int, bucket: int) -> None:
    assert bucketed_size(aligned, None) == bucket


@pytest.mark.parametrize(
    ("aligned", "max_buffer"),
    [
        (10 * MIB - 256, None),  # would need a 1 GiB heap
        (512 * MIB - 256, None),  # would need a heap of its own
        (600 * MIB, 608 * MIB),  # would reach the largest buffer
        (600 * MIB, 604 * MIB),
    ],
)
def test_a_bucket_never_costs_another_kind_of_heap(aligned: int, max_buffer: int | None) -> None:
    assert bucketed_size(aligned, max_buffer) == aligned


@given(st.integers(1, 1 << 40))
def test_buckets_waste_at_most_one_32nd(size: int) -> None:
    aligned = aligned_size(size)
    bucket = bucketed_size(aligned, None)
    assert aligned <= bucket <= aligned + aligned // 32
    assert bucketed_size(bucket, None) == bucket


@pytest.mark.parametrize(
    ("size", "pressure", "expected"),
    [
        (256, False, (8 * MIB, True)),
        (MIB, False, (8 * MIB, True)),
        (MIB, True, (8 * MIB, True)),
        (MIB + 256, False, (32 * MIB, True)),
        (10 * MIB - 256, False, (32 * MIB, True)),
        (10 * MIB, False, (GIB, True)),
        (10 * MIB, True, (10 * MIB, False)),
        (11 * MIB, True, (12 * MIB, False)),
        (512 * MIB - 256, False, (GIB, True)),
        (512 * MIB, False, (512 * MIB, False)),
        (513 * MIB, False, (514 * MIB, False)),
    ],
)
def test_heap_of_a_new_buffer(size: int, pressure: bool, expected: tuple[int, bool]) -> None:
    assert heap_size(size, pressure=pressure) == expected


def test_a_discrete_gpu_has_smaller_heaps() -> None:
    assert heap_size(20 * MIB, xlarge=128 * MIB) == (128 * MIB, True)
    assert heap_size(64 * MIB, xlarge=128 * MIB) == (64 * MIB, False)
