"""Clearing, out-of-memory errors and limits with the real texts and the allocator's real figures."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest
import torch

import mpskit
from mpskit import (
    CacheKeeper,
    OutOfMemory,
    configure_environment,
    empty_cache,
    empty_cache_scope,
    explain_oom,
    is_oom,
    parse_oom,
    run_with_batch_size,
)
from mpskit.environment.rules import HIGH, LOW
from mpskit.errors import DeviceFallbackWarning, TooLateError

MIB, GIB = 2**20, 2**30


@pytest.fixture
def mac():
    with mpskit.simulate("m1-8gb") as machine:
        yield machine


def tensor(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="mps")


def in_use() -> bool:
    return torch._C._accelerator_isAllocatorInitialized()


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_nothing_here_is_a_first_use(mac) -> None:
    for device in (None, "mps", torch.device("mps"), "cpu"):
        assert empty_cache(device).devices == ()
        with empty_cache_scope(device, before=True, above="1MiB"):
            pass
        CacheKeeper(device, every=1).step()
    assert not in_use()
    kept = tensor(MIB)
    assert in_use()
    del kept


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_the_heap_of_a_dead_tensor_comes_back(mac) -> None:
    dead = tensor(10 * MIB)
    assert torch.mps.driver_allocated_memory() == GIB
    del dead
    report = empty_cache()
    assert (report.before_bytes, report.after_bytes, report.freed_bytes) == (GIB, 0, GIB)
    assert report.graph_cache


def test_a_live_tensor_keeps_its_heap(mac) -> None:
    kept = tensor(10 * MIB)
    assert empty_cache("mps").freed_bytes == 0
    assert kept.numel() == 10 * MIB


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_a_cpu_process_on_a_mac_is_left_alone(mac) -> None:
    torch.ones(100)
    with empty_cache_scope():
        torch.ones(100)
    assert not in_use()


@pytest.mark.needs_torch("accelerator.memory.mps")
@pytest.mark.parametrize("text", ["MPS backend out of memory", "Invalid buffer size"])
def test_after_an_oom_the_memory_really_returns(mac, text: str) -> None:
    refs = []

    def step() -> None:
        activations = []
        while True:
            activations.append(tensor(GIB if text[0] == "M" else 5 * GIB))
            refs.append(weakref.ref(activations[-1]))

    with pytest.raises(RuntimeError, match=text) as caught, empty_cache_scope(collect=False):
        step()
    assert is_oom(caught.value)
    assert [ref() for ref in refs if ref() is not None] == []
    assert torch.mps.driver_allocated_memory() == 0
    assert torch.mps.current_allocated_memory() == 0
    # And the next step has room.
    tensor(GIB)


def test_without_the_scope_the_exception_keeps_it(mac) -> None:
    def step() -> None:
        held = [tensor(GIB)]
        while True:
            held.append(tensor(GIB))

    with pytest.raises(RuntimeError) as caught:
        step()
    empty_cache()
    assert torch.mps.current_allocated_memory() > 7 * GIB
    del caught
    gc.collect()
    assert empty_cache().after_bytes == 0


def test_the_figures_are_the_allocator_s(mac) -> None:
    held = [tensor(512 * MIB) for _ in range(17)]
    with pytest.raises(RuntimeError) as caught:
        tensor(GIB)
    figures = parse_oom(str(caught.value))
    assert figures.allocated == pytest.approx(torch.mps.driver_allocated_memory(), rel=1e-3)
    assert figures.max_allowed == pytest.approx(9.07 * GIB, rel=1e-3)
    assert figures.requested == GIB
    assert "9.07 GiB" in str(explain_oom(caught.value))
    assert len(held) == 17


def make_step(weights: int, item: int, sizes: list[int]):
    """Return a step that holds ``item`` bytes an item, in eight allocations, beside weights."""
    kept = tensor(weights)

    def step(batch_size: int, device: str = "mps") -> str:
        sizes.append(batch_size)
        if device == "cpu":
            return device
        layers = [tensor(batch_size * item // 8) for _ in range(8)]
        return f"{kept.numel()} {len(layers)}"

    return step


def test_a_batch_size_is_found_from_the_figures(mac) -> None:
    sizes: list[int] = []
    # 9.07 GiB less 2 GiB of weights: 56 items of 128 MiB
    step = make_step(2 * GIB, 128 * MIB, sizes)
    run_with_batch_size(step, 80)
    assert sizes[0] == 80
    assert 51 <= sizes[-1] <= 56
    assert len(sizes) <= 4
    assert torch.mps.current_allocated_memory() == 2 * GIB


@pytest.mark.needs_torch("mps.max_buffer_length")
def test_a_buffer_that_is_too_large_is_scaled_by_the_largest(mac) -> None:
    sizes: list[int] = []

    def step(batch_size: int) -> None:
        sizes.append(batch_size)
        tensor(batch_size * GIB)

    run_with_batch_size(step, 16, device="mps")
    # the largest buffer of an 8 GiB Mac is a little under 4.00 GiB
    assert sizes == [16, 4, 3]


def test_nothing_fits_and_the_cpu_does(mac) -> None:
    sizes: list[int] = []
    step = make_step(2 * GIB, 8 * GIB, sizes)
    with pytest.raises(OutOfMemory) as caught:
        run_with_batch_size(step, 4)
    assert sizes[-1] == 1
    assert is_oom(caught.value.__cause__)
    with pytest.warns(DeviceFallbackWarning):
        assert run_with_batch_size(step, 4, fallback="cpu") == "cpu"


def test_the_keeper_clears_when_a_quarter_is_idle(mac) -> None:
    keeper = CacheKeeper("mps")
    for size in (MIB, 10 * MIB):
        tensor(size)
        assert keeper.step() is None
    held = [tensor(900 * MIB), tensor(900 * MIB)]
    del held
    # Heaps of 8 MiB, 1 GiB and 900 MiB at least against a quarter of 5.33 GiB.
    report = keeper.step()
    assert report is not None
    assert report.after_bytes == 0


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_an_interrupt_inside_is_survived(mac) -> None:
    def interrupted() -> None:
        tensor(10 * MIB)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), empty_cache_scope():
        interrupted()
    assert torch.mps.driver_allocated_memory() == 0


def test_threads_clear_while_others_allocate(mac) -> None:
    errors: list[BaseException] = []

    def work(turn: int) -> None:
        try:
            for _ in range(20):
                with empty_cache_scope("mps", above="64MiB" if turn % 2 else None, collect=False):
                    tensor((turn + 1) * MIB)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert empty_cache().after_bytes == 0


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_a_limit_in_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (HIGH, LOW):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    with mpskit.simulate("m1-8gb"):
        change = configure_environment(memory_limit="50%")
        assert set(change.set) == {HIGH, LOW}
        kept = tensor(3 * GIB)
        with pytest.raises(RuntimeError) as caught:
            tensor(2 * GIB)
        assert parse_oom(str(caught.value)).max_allowed == pytest.approx(4 * GIB, rel=1e-3)
        with pytest.raises(TooLateError, match="first use"):
            configure_environment(memory_limit="60%", on_conflict="override")
        assert os.environ[HIGH] == change.set[HIGH]
        del kept, caught
