"""What holds for every model after any sequence of requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, KIB, MIB
from mpskit.allocator import AllocatorLimitError, AllocatorModel, allocator_for
from mpskit.allocator.cuda import CudaAllocator
from mpskit.allocator.mps import CachingMps, PlacementMps

_SIZES = st.one_of(
    st.integers(0, 4 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 60 * MIB),
    st.sampled_from([8, 9, MIB, 10 * MIB, 512 * MIB, 513 * MIB, 700 * MIB]),
)
# A step: allocate a size, free one of the live blocks, or empty the cache.
_STEPS = st.lists(
    st.one_of(_SIZES, _SIZES, st.tuples(st.just("free"), st.integers(0, 99)), st.just("empty")),
    max_size=80,
)
Steps = list[int | tuple[str, int] | str]

_MODELS: dict[str, Callable[[int | None], AllocatorModel]] = {
    name: lambda limit, device=device, torch=torch: allocator_for(
        device, torch_version=torch, recommended_bytes=limit
    )
    for name, (device, torch) in {
        "mps-2.12": ("mps", "2.12.1"),
        "mps-2.13": ("mps", "2.13.0"),
        "mps-2.14": ("mps", "2.14.0"),
        "cuda": ("cuda", "2.13.0"),
        "cpu": ("cpu", "2.13.0"),
    }.items()
}


def run(model: AllocatorModel, steps: Steps) -> list[tuple[int, int]]:
    """Do the steps, checking after each; return the figures after each."""
    live: list[int] = []
    figures = []
    for step in steps:
        if isinstance(step, int):
            try:
                live.append(model.allocate(step))
            except AllocatorLimitError as error:
                assert error.max_allowed is not None
                assert error.allocated + error.other + error.requested > error.max_allowed or (
                    isinstance(model, CudaAllocator)  # there the segment is what must fit
                )
        elif step == "empty":
            model.empty_cache()
        elif live:
            model.free(live.pop(step[1] % len(live)))  # type: ignore[operator]
        check(model)
        figures.append((model.live_bytes, model.driver_bytes))
    for block in live:
        model.free(block)
    return figures


def check(model: AllocatorModel) -> None:
    assert 0 <= model.live_bytes <= model.heap_bytes <= model.driver_bytes
    assert model.live_bytes <= model.peak_live_bytes
    assert model.driver_bytes <= model.peak_driver_bytes
    if isinstance(model, CachingMps):
        _check_buffers(model)
    elif isinstance(model, PlacementMps):
        _check_blocks(model)
    elif isinstance(model, CudaAllocator):
        _check_segments(model)


def _check_buffers(model: CachingMps) -> None:
    ranges = defaultdict(list)
    for buffer in model.buffers.values():
        ranges[buffer.heap].append((buffer.offset, buffer.offset + buffer.size))
    for heap, taken in ranges.items():
        spans = sorted([*taken, *heap.free])
        assert spans[0][0] == 0
        assert spans[-1][1] == heap.total
        assert all(left[1] == right[0] for left, right in pairwise(spans))
        assert heap.buffers == len(taken)
    in_use = sum(buffer.size for buffer in model.buffers.values() if buffer.in_use)
    assert in_use == model.live_bytes


def _check_blocks(model: PlacementMps) -> None:
    heaps = {block.heap for block in model.blocks.values()}
    assert sum(heap.total for heap in heaps) == model.heap_bytes
    for heap in heaps:
        end, free, block = 0, 0, heap.first
        while block is not None:
            assert block.offset == end
            assert model.blocks[block.key] is block
            end += block.size
            free += 0 if block.in_use else block.size
            block = block.next
        assert (end, free) == (heap.total, heap.free_bytes)
    in_use = sum(block.size for block in model.blocks.values() if block.in_use)
    assert in_use == model.live_bytes


def _check_segments(model: CudaAllocator) -> None:
    blocks = model._blocks.values()
    assert sum(block.size for block in blocks) == model.heap_bytes
    assert sum(block.size for block in blocks if block.in_use) == model.live_bytes
    for block in blocks:
        if block.next is not None:
            assert block.next.prev is block
            assert block.in_use or block.next.in_use  # free neighbours are joined at once
    free = sorted((b.size, b.key) for b in blocks if not b.in_use)
    assert free == sorted(model._free[True] + model._free[False])


@pytest.mark.parametrize("name", list(_MODELS))
@settings(max_examples=60, deadline=None)
@given(steps=_STEPS)
def test_without_a_limit_everything_comes_back(name: str, steps: Steps) -> None:
    model = _MODELS[name](None)
    run(model, steps)
    assert model.live_bytes == 0
    model.empty_cache()
    assert (model.heap_bytes, model.driver_bytes) == (0, 0)


@pytest.mark.parametrize("name", [name for name in _MODELS if name != "cpu"])
@settings(max_examples=60, deadline=None)
@given(steps=_STEPS)
def test_near_the_limit_the_figures_stay_true(name: str, steps: Steps) -> None:
    model = _MODELS[name](GIB)
    run(model, steps)
    assert model.live_bytes == 0
    model.empty_cache()
    if isinstance(model, CachingMps):
        # torch to 2.13 keeps a shared heap that collection emptied until it is used again.
        left = [heap for pool in model._pools for heap in pool.heaps.values()]
        assert all(heap.shared and not heap.buffers for heap in left)
        assert sum(heap.total for heap in left) == model.heap_bytes
    else:
        assert model.heap_bytes == 0


@pytest.mark.parametrize("name", list(_MODELS))
@settings(max_examples=30, deadline=None)
@given(steps=_STEPS)
def test_the_same_steps_give_the_same_figures(name: str, steps: Steps) -> None:
    assert run(_MODELS[name](GIB), steps) == run(_MODELS[name](GIB), steps)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(_SIZES, max_size=40))
def test_a_repeated_step_takes_no_more_from_the_driver(sizes: list[int]) -> None:
    for name in ("mps-2.13", "mps-2.14", "cuda"):
        model = _MODELS[name](None)
        held = []
        for _ in range(3):
            for block in [model.allocate(size) for size in sizes]:
                model.free(block)
            held.append(model.driver_bytes)
        assert held[1] == held[2]
