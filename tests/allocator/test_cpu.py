"""The CPU's model: what is requested is what is counted."""

from __future__ import annotations

import pytest

from mpskit.allocator.cpu import CpuAllocator
from mpskit.errors import ArgumentError


def test_live_and_driver_are_the_bytes_requested() -> None:
    cpu = CpuAllocator()
    first, second = cpu.allocate(100), cpu.allocate(7)
    assert (cpu.live_bytes, cpu.driver_bytes, cpu.heap_bytes) == (107, 107, 107)
    cpu.free(first)
    cpu.empty_cache()
    assert (cpu.live_bytes, cpu.peak_live_bytes, cpu.peak_driver_bytes) == (7, 107, 107)
    cpu.reset_peaks()
    assert cpu.peak_live_bytes == 7
    cpu.free(second)
    assert cpu.live_bytes == 0


def test_wrong_use_is_an_error() -> None:
    cpu = CpuAllocator()
    block = cpu.allocate(0)
    cpu.free(block)
    with pytest.raises(ArgumentError, match="not allocated"):
        cpu.free(block)
    with pytest.raises(ArgumentError, match="-1"):
        cpu.allocate(-1)
