"""The Mac paths on simulated Macs: real allocator figures, real errors, every profile's budget."""

import time

import pytest
import torch

import mpskit
from mpskit import MemoryMonitor, limit_memory, memory_budget, memory_budget_for, memory_snapshot
from mpskit._base.sizes import GIB, MIB
from mpskit.backends.memory import backend
from mpskit.memory.limit import high_watermark

APPLE_SILICON = ["m1-8gb", "m2-24gb", "m3-max-36gb", "m4-pro-48gb", "m1-ultra-128gb"]


@pytest.mark.parametrize("name", APPLE_SILICON)
@pytest.mark.parametrize("macos", ["15.3", "26"])
def test_what_metal_says_is_what_the_rule_says(name, macos):
    with mpskit.simulate(name, macos=macos) as mac:
        ahead = memory_budget_for(mac.machine.ram_bytes, macos)
        unused = memory_budget("mps", live=False)
        assert not backend("mps").is_initialized()
        live = memory_budget("mps")
    assert (unused.recommended_source, live.recommended_source) == ("table", "live")
    for field in ("recommended_bytes", "limit_bytes", "max_buffer_bytes", "total_bytes"):
        assert getattr(live, field) == getattr(unused, field) == getattr(ahead, field)


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_figures_of_a_mac_in_use():
    with mpskit.simulate("m1-8gb"):
        held = torch.ones(1024, 1024, device="mps")
        found = memory_snapshot()
        assert (found.device, found.allocated_bytes) == ("mps", 4 * MIB)
        assert found.reserved_bytes == torch.mps.driver_allocated_memory()
        assert found.peak_source == "native"
        budget = memory_budget("mps", reserve=0)
        assert budget.usable_bytes == min(
            budget.recommended_bytes - budget.reserved_bytes, budget.available_bytes
        )
        del held


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_a_mac_that_is_not_in_use_is_not_touched():
    with mpskit.simulate("m1-8gb"):
        assert memory_snapshot("mps").allocated_bytes == 0
        assert memory_snapshot().device == "cpu"
        assert backend("mps").is_initialized() is False


@pytest.mark.parametrize("name", ["intel-mac-32gb", "github-macos-15-vm", "rosetta-m2-16gb"])
def test_no_odd_machine_makes_a_figure_raise(name):
    with mpskit.simulate(name):
        assert memory_budget("mps", live=False).device == "mps"
        assert memory_budget("cpu").usable_bytes > 0
        assert memory_snapshot("mps").footprint_bytes > 0


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_a_peak_between_samples_is_seen():
    with mpskit.simulate("m1-16gb"), MemoryMonitor("mps", interval=60) as monitor:
        torch.ones(100 * MIB, dtype=torch.uint8, device="mps")
    assert monitor.peak_source == "native"
    assert 100 * MIB <= monitor.peak_bytes < 110 * MIB
    assert monitor.peak_reserved_bytes >= 1000 * MIB  # one 1 GiB heap for one 100 MiB tensor


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_the_thread_samples_the_simulated_mac():
    with mpskit.simulate("m1-16gb"), MemoryMonitor(interval=0.01) as monitor:
        held = torch.ones(8 * MIB, dtype=torch.uint8, device="mps")
        end = time.monotonic() + 120
        while len(monitor.timeline) < 4:
            assert time.monotonic() < end
            time.sleep(0.01)
        seen = monitor.timeline[-1].allocated_bytes
        del held
    assert seen == 8 * MIB
    assert str(monitor).startswith("Peak memory of mps: tensors (native)")


def fill(gib):
    """Allocate and hold so many GiB, in parts that any Mac takes as single buffers."""
    return [torch.empty(GIB // 4, dtype=torch.uint8, device="mps") for _ in range(4 * gib)]


@pytest.mark.parametrize("limit", ["50%", 0.5, "4GiB"])
def test_a_cap_makes_the_job_fail_and_goes_away(limit):
    with mpskit.simulate("m1-8gb"):
        with limit_memory(limit, "mps") as applied:
            assert applied.limit_bytes == pytest.approx(4 * GIB, abs=1)
            with pytest.raises(RuntimeError, match=r"max allowed: 4\.00 Gi?B") as caught:
                fill(5)
            assert mpskit.is_oom(caught.value)
            del caught
        held = fill(5)
        assert torch.mps.driver_allocated_memory() >= 5 * GIB
        del held


def test_a_cap_stays_without_a_block_and_ends_with_the_machine():
    with mpskit.simulate("m1-8gb"):
        applied = limit_memory("2GiB", "mps")
        with pytest.raises(RuntimeError, match=r"max allowed: 2\.00 Gi?B"):
            fill(3)
        assert high_watermark() == applied.ratio
    assert high_watermark() == 1.7


def test_80_percent_of_the_ram_is_above_the_working_set_and_below_the_ram():
    with mpskit.simulate("m1-8gb"), limit_memory("80%", "mps") as applied:
        assert torch.mps.recommended_max_memory() < applied.limit_bytes < 8 * GIB
        held = fill(6)
        with pytest.raises(RuntimeError, match="MPS backend out of memory"):
            held += fill(1)
        del held
