"""MPSAllocator's behaviour by version, each rule by a sequence that can be followed by hand."""

from __future__ import annotations

import math

import pytest

from mpskit._base.sizes import GIB, MIB
from mpskit.allocator import (
    AllocatorLimitError,
    BufferTooLargeError,
    MpsAllocator,
    WatermarkError,
    allocator_for,
)
from mpskit.errors import ArgumentError, OutOfMemory

ALL = ("2.2.2", "2.7.1", "2.12.1", "2.13.0", "2.14.0", "2.15.0")
CACHING = ("2.2.2", "2.12.1", "2.13.0")
PLACEMENT = ("2.14.0", "2.15.0")


def _fill(model: MpsAllocator) -> None:
    for _ in range(200):
        model.allocate(600 * MIB)


def mps(torch: str, recommended: int | None = None, **more: float) -> MpsAllocator:
    return allocator_for("mps", torch_version=torch, recommended_bytes=recommended, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("torch", ALL)
@pytest.mark.parametrize(
    ("sizes", "driver"),
    [
        ([256], 8 * MIB),
        ([MIB] * 8, 8 * MIB),
        ([MIB] * 9, 16 * MIB),
        ([4 * MIB] * 8, 32 * MIB),
        ([4 * MIB] * 9, 64 * MIB),
        ([10 * MIB], GIB),
        ([20 * MIB] * 51, GIB),
        ([20 * MIB] * 52, 2 * GIB),
        ([512 * MIB], 512 * MIB),
        ([256, 10 * MIB, 2 * MIB], GIB + 8 * MIB),  # 2 MiB finds room in the 1 GiB heap
        ([2 * MIB, 10 * MIB], 32 * MIB),  # and 10 MiB in the 32 MiB heap
    ],
)
def test_driver_memory_is_whole_heaps(torch: str, sizes: list[int], driver: int) -> None:
    model = mps(torch)
    for size in sizes:
        model.allocate(size)
    assert model.driver_bytes == model.heap_bytes == driver
    assert model.live_bytes == sum(sizes)


@pytest.mark.parametrize(
    ("torch", "driver", "pool"),
    [("2.12.1", 16 * MIB, "private"), ("2.13.0", 8 * MIB, "shared"), ("2.14.0", 8 * MIB, "shared")],
)
def test_scalars_are_shared_where_tensors_are_private(torch: str, driver: int, pool: str) -> None:
    model = mps(torch, 9 * MIB, high=1.9)
    model.allocate(8)
    model.allocate(9)
    assert model.driver_bytes == driver
    with pytest.raises(AllocatorLimitError) as caught:
        model.allocate(32 * MIB)
    assert caught.value.pool == pool
    assert f"on {pool} pool" in caught.value.message


@pytest.mark.parametrize("torch", CACHING)
def test_to_2_13_a_cached_buffer_is_reused_whole_up_to_32_mib_over(torch: str) -> None:
    model = mps(torch)
    model.free(model.allocate(52 * MIB))
    model.allocate(20 * MIB)
    assert model.live_bytes == 52 * MIB


@pytest.mark.parametrize("torch", CACHING)
def test_to_2_13_a_larger_one_is_carved_if_no_heap_has_room(torch: str) -> None:
    model = mps(torch)
    model.free(model.allocate(600 * MIB))
    model.allocate(20 * MIB)
    assert (model.live_bytes, model.driver_bytes) == (20 * MIB, 600 * MIB)
    model.allocate(570 * MIB)
    assert model.driver_bytes == 600 * MIB


@pytest.mark.parametrize("torch", CACHING)
def test_to_2_13_a_larger_one_stays_if_a_heap_has_room(torch: str) -> None:
    model = mps(torch)
    cached = model.allocate(100 * MIB)
    model.free(cached)
    small = model.allocate(20 * MIB)
    assert (model.live_bytes, model.driver_bytes) == (20 * MIB, GIB)
    assert small != cached
    assert model.allocate(100 * MIB) == cached


@pytest.mark.parametrize("torch", PLACEMENT)
def test_from_2_14_a_free_block_is_cut(torch: str) -> None:
    model = mps(torch)
    model.free(model.allocate(52 * MIB))
    model.allocate(20 * MIB)
    assert (model.live_bytes, model.driver_bytes) == (20 * MIB, GIB)


@pytest.mark.parametrize("torch", PLACEMENT)
def test_from_2_14_less_than_1_mib_is_not_cut_off(torch: str) -> None:
    model = mps(torch)
    model.free(model.allocate(20 * MIB + MIB // 2))
    model.allocate(20 * MIB)
    assert model.live_bytes == 20 * MIB + MIB // 2


@pytest.mark.parametrize(("torch", "driver"), [("2.13.0", GIB + 32 * MIB), ("2.14.0", 32 * MIB)])
def test_neighbours_are_joined_from_2_14(torch: str, driver: int) -> None:
    # The example of pytorch#190438: 13 MiB where 6 and 8 were freed side by side.
    model = mps(torch)
    first, second = model.allocate(6 * MIB), model.allocate(8 * MIB)
    model.allocate(8 * MIB)
    model.allocate(9 * MIB)
    model.free(first)
    model.free(second)
    model.allocate(13 * MIB)
    assert model.driver_bytes == driver


@pytest.mark.parametrize("torch", ALL)
def test_empty_cache_gives_back_whole_heaps_only(torch: str) -> None:
    model = mps(torch)
    first, second = model.allocate(20 * MIB), model.allocate(20 * MIB)
    tiny = model.allocate(256)
    model.free(first)
    model.free(tiny)
    model.empty_cache()
    assert model.driver_bytes == GIB
    model.free(second)
    assert model.driver_bytes == GIB
    model.empty_cache()
    assert (model.live_bytes, model.driver_bytes) == (0, 0)
    assert (model.peak_live_bytes, model.peak_driver_bytes) == (40 * MIB + 256, GIB + 8 * MIB)
    model.reset_peaks()
    assert (model.peak_live_bytes, model.peak_driver_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("ram_gib", "fraction", "printed"),
    [(8, 2 / 3, "9.07"), (16, 2 / 3, "18.13"), (64, 0.75, "81.60")],
)
@pytest.mark.parametrize(("torch", "unit"), [("2.6.0", "GB"), ("2.13.0", "GiB"), ("2.14.0", "GiB")])
def test_published_limits(
    ram_gib: int, fraction: float, printed: str, torch: str, unit: str
) -> None:
    recommended = math.ceil(ram_gib * GIB / 16384 * fraction) * 16384
    model = mps(torch, recommended)
    with pytest.raises(AllocatorLimitError, match=rf"max allowed: {printed} {unit}\)"):
        _fill(model)
    assert model.limit_bytes is not None
    assert model.limit_bytes - 1300 * MIB < model.driver_bytes <= model.limit_bytes


@pytest.mark.parametrize("torch", ALL)
def test_the_request_is_checked_not_the_heap(torch: str) -> None:
    model = mps(torch, 1000 * MIB, high=1.7, low=0.0)
    model.allocate(960 * MIB)
    model.allocate(20 * MIB)
    assert model.driver_bytes == 960 * MIB + GIB > 1700 * MIB
    with pytest.raises(AllocatorLimitError) as caught:
        model.allocate(20 * MIB)  # room in the heap does not help above the limit
    error = caught.value
    assert isinstance(error, OutOfMemory)
    assert (error.allocated, error.max_allowed) == (model.heap_bytes, 1700 * MIB)
    assert str(error) == error.message
    assert model.live_bytes == 980 * MIB


@pytest.mark.parametrize("torch", ALL)
def test_the_cache_is_emptied_before_it_fails(torch: str) -> None:
    model = mps(torch, 1000 * MIB, low=0.0)
    model.free(model.allocate(900 * MIB))
    model.free(model.allocate(4 * MIB))
    model.allocate(1600 * MIB)
    assert model.driver_bytes == model.live_bytes == 1600 * MIB


@pytest.mark.parametrize("torch", ALL)
def test_other_memory_of_the_process_counts(torch: str) -> None:
    model = mps(torch, 1000 * MIB)
    model.other_bytes = 1695 * MIB
    assert model.driver_bytes == model.peak_driver_bytes == 1695 * MIB
    with pytest.raises(AllocatorLimitError, match=r"other allocations: 1\.66 G") as caught:
        model.allocate(6 * MIB)
    assert (caught.value.allocated, caught.value.other) == (0, 1695 * MIB)


@pytest.mark.parametrize("torch", ALL)
def test_no_limit_at_a_ratio_of_0(torch: str) -> None:
    model = mps(torch, MIB, high=0.0)
    model.allocate(GIB)
    assert model.limit_bytes is None
    assert model.driver_bytes == GIB


@pytest.mark.parametrize("torch", ALL)
def test_lowering_the_limit_later_changes_only_the_high_one(torch: str) -> None:
    model = mps(torch, GIB)
    low = model._low_limit
    block = model.allocate(600 * MIB)
    model.set_high_watermark(0.5)
    assert (model.limit_bytes, model._low_limit) == (GIB // 2, low)
    model.free(block)
    with pytest.raises(AllocatorLimitError):
        model.allocate(600 * MIB)  # also the cached buffer of that size is refused
    assert model.driver_bytes == 0  # and lost: everything cached went back first
    model.set_high_watermark(0.0)
    assert model.allocate(600 * MIB)


@pytest.mark.parametrize(
    ("high", "low", "text"),
    [
        (0.8, 1.4, "invalid low watermark ratio 1.4"),
        (2.1, 1.4, "invalid high watermark ratio 2.1"),
        (-0.5, 0.0, "invalid high watermark ratio -0.5"),
        (1.7, 1.8, "invalid low watermark ratio 1.8"),
        (0.0, 2.01, "invalid low watermark ratio 2.01"),
        (1.7, -1.0, "invalid low watermark ratio -1"),
        (math.nan, 1.0, "invalid high watermark ratio nan"),
    ],
)
def test_ratios_that_torch_refuses(high: float, low: float, text: str) -> None:
    with pytest.raises(WatermarkError, match=f"^{text}$") as caught:
        mps("2.13.0", GIB, high=high, low=low)
    assert isinstance(caught.value, RuntimeError)


def test_ratios_that_torch_takes() -> None:
    assert mps("2.13.0", GIB, high=0.0, low=2.0)._low_limit == 2 * GIB
    assert mps("2.13.0", GIB, high=0.8, low=0.8).limit_bytes == int(0.8 * GIB)
    assert mps("2.13.0", GIB, low=0.0)._low_limit is None


@pytest.mark.parametrize("torch", ALL)
def test_under_pressure_a_request_gets_its_own_heap(torch: str) -> None:
    model = mps(torch, GIB)
    model.allocate(1440 * MIB)  # above 1.4 GiB
    model.allocate(19 * MIB)
    assert model.driver_bytes == (1440 + 20) * MIB
    model.allocate(256)  # small requests do not look
    assert model.driver_bytes == (1440 + 20 + 8) * MIB


@pytest.mark.parametrize("torch", ALL)
@pytest.mark.parametrize(("below", "heap"), [(MIB - 1, 20 * MIB), (MIB, GIB)])
def test_pressure_starts_1_mib_below_the_low_watermark(torch: str, below: int, heap: int) -> None:
    model = mps(torch, GIB)
    assert model._low_limit is not None
    model.other_bytes = model._low_limit - below
    model.allocate(20 * MIB)
    assert model.heap_bytes == heap


@pytest.mark.parametrize("torch", ALL)
def test_under_pressure_cached_memory_is_collected(torch: str) -> None:
    model = mps(torch, GIB)
    cached = [model.allocate(560 * MIB), model.allocate(592 * MIB)]
    model.allocate(528 * MIB)
    for block in cached:
        model.free(block)
    # 1680 MiB are held and 1433.6 is the low limit, so the first cached buffer's heap goes;
    # without it there is room below the high limit of 1740.8.
    model.allocate(544 * MIB)
    assert model.driver_bytes == (544 + 528 + 592) * MIB


@pytest.mark.parametrize("torch", ALL)
def test_the_largest_buffer(torch: str) -> None:
    model = allocator_for("mps", torch_version=torch, max_buffer_bytes=9534832640)
    with pytest.raises(BufferTooLargeError, match=r"^Invalid buffer size: 8.88 Gi?B$") as caught:
        model.allocate(9534832640)
    assert (caught.value.requested, caught.value.max_buffer) == (9534832640, 9534832640)
    model.allocate(9534832640 - 1)


@pytest.mark.parametrize("torch", ALL)
def test_wrong_use(torch: str) -> None:
    model = mps(torch)
    nothing = model.allocate(0)
    assert (model.live_bytes, model.driver_bytes) == (0, 0)
    model.free(nothing)
    block = model.allocate(1)
    model.free(block)
    for wrong in (block, 12345):
        with pytest.raises(ArgumentError, match="not allocated"):
            model.free(wrong)
    with pytest.raises(ArgumentError, match="-1"):
        model.allocate(-1)


def test_a_discrete_gpu_to_2_12() -> None:
    model = allocator_for("mps", torch_version="2.2.2", unified=False)
    model.allocate(10 * MIB)
    model.allocate(4)
    model.allocate(300)
    assert model.driver_bytes == (128 + 8) * MIB


@pytest.mark.parametrize("torch", ALL)
@pytest.mark.parametrize(("request_mib", "held"), [(60, 1440 + 60), (64, 1504 + 64), (100, 1604)])
def test_only_more_than_the_request_is_worth_collecting(
    torch: str, request_mib: int, held: int
) -> None:
    model = mps(torch, GIB)
    model.allocate(1440 * MIB)  # above the low watermark, so that each has a heap of its own
    for block in [model.allocate(32 * MIB), model.allocate(32 * MIB)]:
        model.free(block)
    model.allocate(request_mib * MIB)
    assert model.driver_bytes == held * MIB


@pytest.mark.parametrize(
    ("limits", "driver", "largest", "clear"),
    [
        ({"high": 1.7, "low": 1.4}, 0, 0, True),
        # The largest request may take a bucket of twice its size, and a page beside it.
        ({"low": 0.0}, 79 * MIB, 10 * MIB, True),
        ({"low": 0.0}, 79 * MIB + 1, 10 * MIB, False),
        ({"low": 0.0}, 79 * MIB, 10 * MIB + 1, False),
        # From 1 MiB below the low watermark on, large requests have heaps of their own.
        ({"high": 0.0, "low": 0.5}, 49 * MIB, 10 * MIB, True),
        ({"high": 0.0, "low": 0.5}, 49 * MIB + 1, 10 * MIB, False),
        ({"high": 0.0, "low": 0.0, "max_buffer_bytes": 40 * MIB}, 0, 20 * MIB - 1, True),
        ({"high": 0.0, "low": 0.0, "max_buffer_bytes": 40 * MIB}, 0, 20 * MIB, False),
    ],
)
def test_what_no_limit_would_change(
    limits: dict[str, float], driver: int, largest: int, clear: bool
) -> None:
    model = mps("2.13.0", 100 * MIB, **({"high": 1.0} | limits))
    assert model.clear_of_limits(driver, largest) is clear
    model.lift_limits()
    assert model.clear_of_limits(driver, largest)
