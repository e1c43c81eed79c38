"""Budgets: what may be used, where it is measured and where it is worked out."""

import subprocess
import sys

import psutil
import pytest
import torch
from fake_backend import FakeBackend, install
from hypothesis import given
from hypothesis import strategies as st

from mpskit import MemoryBudget, memory_budget, memory_budget_for
from mpskit._base.sizes import GIB, MIB
from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.host import Host, Readings, detect_host, find_machine
from mpskit.host.cuda_cards import cuda_card
from mpskit.host.named import as_host
from mpskit.memory import budget as budgets
from mpskit.memory import limit as limits
from mpskit.system import process as users
from mpskit.system.machine import replace_readings

M1_8GB = 5726633984


@pytest.fixture
def machine():
    """``machine("m1-8gb", memory_available=...)``: later readings are that machine's."""

    def become(readings, **changed):
        if isinstance(readings, str):
            readings = find_machine(readings).readings()
        replace_readings(readings.model_copy(update=changed))

    yield become
    replace_readings(None)
    detect_host(refresh=True)


@pytest.fixture(autouse=True)
def _no_cap(monkeypatch):
    monkeypatch.setattr(limits, "_caps", {})
    monkeypatch.delenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", raising=False)


def test_what_metal_allows_less_what_the_process_holds_less_the_reserve(machine, mps):
    machine("m1-8gb", memory_available=7 * GIB)
    mps.recommended, mps.max_buffer = M1_8GB, 4 * GIB
    found = memory_budget("mps", reserve=GIB)
    assert found.usable_bytes == M1_8GB - 4 * GIB - GIB
    assert (found.allocated_bytes, found.reserved_bytes) == (GIB, 4 * GIB)
    assert (found.recommended_source, found.confidence) == ("live", "high")
    assert (found.max_buffer_bytes, found.limit_bytes) == (4 * GIB, int(1.7 * M1_8GB))
    assert found.total_bytes == 8 * GIB
    assert "M1" in found.machine


def test_what_other_programs_hold_is_not_usable(machine, mps):
    machine("m1-8gb", memory_available=GIB)
    mps.recommended, mps.reserved = M1_8GB, 0
    found = memory_budget("mps", reserve="256 MiB")
    assert found.usable_bytes == GIB - 256 * MIB
    assert any("other programs hold memory" in note for note in found.notes)


def test_nothing_is_usable_when_the_reserve_takes_it_all(machine, mps):
    machine("m1-8gb", memory_available=GIB)
    assert memory_budget("mps", reserve="50%").usable_bytes == 0


def test_a_backend_that_is_not_in_use_is_left_alone_unless_live(machine, mps):
    def refuse():
        pytest.fail("it was asked")

    machine("m1-8gb")
    mps.initialized = False
    mps.recommended = mps.allocated = mps.reserved = mps.max_buffer = refuse
    found = memory_budget("mps", live=False)
    assert (found.recommended_bytes, found.recommended_source) == (M1_8GB, "table")
    assert found.allocated_bytes is None


def test_a_backend_in_use_is_asked_even_if_not_live(machine, mps):
    machine("m1-8gb")
    assert memory_budget("mps", live=False).allocated_bytes == GIB


def test_the_rule_stands_in_where_torch_is_too_old_to_tell(machine, mps):
    machine("m3-max-64gb")
    mps.recommended = None
    found = memory_budget("mps")
    assert (found.recommended_bytes, found.recommended_source) == (48 * GIB, "table")
    assert found.reserved_bytes == 4 * GIB


def test_the_users_own_wired_limit_is_told(machine, mps):
    readings = find_machine("m1-8gb").readings()
    sysctl = {**readings.sysctl, "iogpu.wired_limit_mb": "6144"}
    machine(readings, sysctl=sysctl)
    mps.initialized = False
    found = memory_budget("mps", live=False)
    assert found.wired_limit_bytes == found.recommended_bytes == 6 * GIB
    assert any("wired_limit" in note for note in found.notes)


def test_a_watermark_of_zero_is_no_limit(machine, mps, monkeypatch):
    machine("m1-8gb")
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0")
    found = memory_budget("mps")
    assert found.limit_bytes is None
    assert any("no limit" in note for note in found.notes)


def test_swapping_is_told(machine, mps):
    machine("m1-8gb", swap_total=4 * GIB, swap_used=3 * GIB)
    found = memory_budget("mps")
    assert found.swap_used_bytes == 3 * GIB
    assert "the machine already swaps" in found.notes


def test_a_discrete_gpu_that_does_not_tell_has_no_usable_figure(machine, mps):
    machine("intel-mac-amd-32gb")
    mps.recommended = None
    found = memory_budget("mps")
    assert found.usable_bytes is None
    assert found.confidence == "low"


LINUX = Readings(system="Linux", machine="x86_64", memory_total=64 * GIB, memory_available=50 * GIB)


def test_the_cpu_has_the_ram(machine):
    machine(LINUX)
    found = memory_budget("cpu", reserve=0)
    assert (found.total_bytes, found.recommended_source) == (64 * GIB, "ram")
    assert found.usable_bytes == 50 * GIB
    assert found.limit_bytes is None


@pytest.mark.parametrize(
    "files", [{"memory.max": str(4 * GIB)}, {"memory/memory.limit_in_bytes": str(4 * GIB)}]
)
def test_a_container_has_what_its_groups_allow(machine, files):
    machine(LINUX, cgroup=files)
    found = memory_budget("cpu", reserve=0)
    assert (found.total_bytes, found.recommended_source) == (4 * GIB, "cgroup")
    assert found.usable_bytes == 4 * GIB


@pytest.mark.parametrize("text", ["max", "", "-1", "4 GiB", "\x00", "9223372036854771712"])
def test_a_malformed_or_absent_group_limit_is_none(machine, text):
    machine(LINUX, cgroup={"memory.max": text})
    assert memory_budget("cpu").recommended_source == "ram"


@pytest.fixture
def cuda(monkeypatch):
    fake = install(monkeypatch, FakeBackend("cuda"))
    fake.total, fake.unused, fake.fraction = 24 * GIB, 10 * GIB, 0.5
    fake.recommended = None
    return fake


def test_a_card_has_its_own_memory(machine, cuda):
    machine(LINUX, memory_available=GIB)
    found = memory_budget("cuda:0", reserve=GIB)
    assert (found.total_bytes, found.recommended_source) == (24 * GIB, "vram")
    assert (found.limit_bytes, found.free_bytes) == (12 * GIB, 10 * GIB)
    # The cap leaves 12 - 4 GiB, the card has 10 free; the RAM does not matter.
    assert found.usable_bytes == 7 * GIB


def test_a_card_that_is_not_in_use_is_not_asked_unless_live(machine, cuda):
    machine(LINUX)
    cuda.initialized = False
    found = memory_budget("cuda", live=False)
    assert (found.total_bytes, found.usable_bytes) == (None, None)
    assert any("first use" in note for note in found.notes)


def test_a_device_that_tells_nothing_is_no_error():
    found = memory_budget("hpu")
    assert found.recommended_bytes is None
    assert "hpu does not report its memory" in found.notes


def test_the_default_device_is_the_optimal_one():
    from mpskit import get_optimal_device

    assert memory_budget().device == str(get_optimal_device().device)


@pytest.mark.parametrize(
    ("reserve", "size"),
    [
        (None, 64 * GIB // 20),
        (0, 0),
        (3 * 2**20, 3 * 2**20),
        ("2GiB", 2 * GIB),
        ("10%", 64 * GIB // 10),
        (" 10 % ", 64 * GIB // 10),
        (0.25, 16 * GIB),
        (0.0, 0),
        (1.0, 64 * GIB),
    ],
)
def test_reserves(machine, reserve, size):
    machine(LINUX)
    assert memory_budget("cpu", reserve=reserve).reserve_bytes == size


@pytest.mark.parametrize("gib", [4, 8, 64, 512])
def test_the_default_reserve_is_5_percent_within_bounds(gib):
    reserve = memory_budget_for(gib * GIB).reserve_bytes
    assert reserve == min(max(gib * GIB // 20, GIB // 2), 4 * GIB)


@pytest.mark.parametrize(
    ("reserve", "error"),
    [
        (-1, ArgumentError),
        (-0.5, ArgumentError),
        (1.5, ArgumentError),
        (float("nan"), ArgumentError),
        (float("inf"), ArgumentError),
        ("110%", ArgumentError),
        ("much", ArgumentError),
        ("", ArgumentError),
        (True, ArgumentTypeError),
        ([1], ArgumentTypeError),
    ],
)
def test_a_reserve_that_cannot_be_used_is_a_typed_error(reserve, error):
    with pytest.raises(error) as caught:
        memory_budget_for(8 * GIB, reserve=reserve)
    assert caught.value.given is reserve or caught.value.given == reserve


def test_a_device_that_cannot_be_used_is_a_typed_error():
    with pytest.raises(ArgumentError):
        memory_budget("banana")
    with pytest.raises(ArgumentTypeError):
        memory_budget(7)


def test_another_mac_without_its_being_here():
    found = memory_budget_for(64 * GIB, "26", "M3 Max", wired_limit_bytes=60 * GIB)
    assert (found.recommended_bytes, found.wired_limit_bytes) == (60 * GIB, 60 * GIB)
    assert found.machine == "M3 Max, 64.00 GiB, macOS 26"
    assert found.usable_bytes == 60 * GIB - found.reserve_bytes


@pytest.mark.parametrize(
    ("macos", "torch", "note"),
    [
        ("12.2", "2.13.0", "torch has MPS from macOS 12.3 on; macOS 12.2 has only the CPU"),
        (" 10.15", None, "torch has MPS from macOS 12.3 on; macOS 10.15 has only the CPU"),
        ("12", "2.2.0", None),  # it may be a 12.7
        ("13.5", "2.13.0", "torch 2.13.0 needs macOS 14"),
        ("13.5", "2.2.0", None),
        ("13.5", None, None),
        ("15.6", "2.13.0", None),
    ],
)
def test_a_macos_that_is_too_old_for_torch(monkeypatch, macos, torch, note):
    monkeypatch.setattr(budgets, "torch_version", lambda: torch)
    found = [line for line in memory_budget_for(16 * GIB, macos).notes if "torch" in line]
    assert len(found) == (note is not None)
    assert note is None or found[0].startswith(note)


MACS = ["m1-8gb", "m3-max-64gb", "github-macos-15-vm", "intel-mac-32gb", "intel-mac-amd-32gb"]


@pytest.mark.parametrize("name", MACS)
def test_another_machine_in_any_form_is_its_facts(name):
    mac = find_machine(name)
    found = memory_budget(machine=name)
    facts = memory_budget_for(mac.ram_bytes, mac.macos, mac.chip, vram_bytes=mac.vram_bytes)
    assert found.usable_bytes == facts.usable_bytes
    assert (found.device, found.limit_bytes) == (facts.device, facts.limit_bytes)
    assert found == memory_budget(machine=mac)
    assert found == memory_budget(machine=as_host(mac))


def test_the_processor_of_another_machine_has_its_ram():
    found = memory_budget("cpu", machine="m1-16gb", reserve=0)
    assert (found.device, found.usable_bytes) == ("cpu", 16 * GIB)
    assert (found.limit_bytes, found.recommended_source) == (None, "ram")
    host = Host.from_readings(LINUX)
    assert memory_budget(machine=host, reserve="1GiB").usable_bytes == 63 * GIB


def test_python_under_rosetta_has_the_cpu_and_a_note():
    found = memory_budget(machine="rosetta-m2-16gb")
    assert found.device == "cpu"
    assert any("Rosetta" in note for note in found.notes)


def test_a_wired_limit_of_another_machine_counts():
    readings = find_machine("m1-8gb").readings()
    sysctl = {**readings.sysctl, "iogpu.wired_limit_mb": "6144"}
    readings = readings.model_copy(update={"sysctl": sysctl})
    assert memory_budget(machine=Host.from_readings(readings)).recommended_bytes == 6 * GIB


@pytest.mark.parametrize("name", ["T4", "P100", "RTX 3060", "RTX 3090", "A100", "H200"])
def test_a_cuda_card_gives_its_memory_less_context_and_reserve(name):
    found = memory_budget(machine=name)
    total = cuda_card(name).memory_bytes
    assert (found.device, found.total_bytes, found.limit_bytes) == ("cuda", total, total)
    assert found.reserve_bytes == min(max(total // 20, 512 * MIB), 4 * GIB)
    assert found.usable_bytes == total - 300 * MIB - found.reserve_bytes
    assert memory_budget("cuda:0", machine=name, reserve=0).usable_bytes == total - 300 * MIB


def test_what_another_machine_does_not_have():
    with pytest.raises(ArgumentError, match="cuda"):
        memory_budget("cuda", machine="m1-8gb")
    with pytest.raises(ArgumentError, match="RAM"):
        memory_budget("cpu", machine="T4")
    with pytest.raises(ArgumentError, match="RAM"):
        memory_budget(machine=Host.from_readings(Readings(system="Linux")))
    with pytest.raises(ArgumentError, match="Mac"):
        budgets.machine_budget("T4", "15.6")
    with pytest.raises(ArgumentError, match="version"):
        budgets.machine_budget("m1-8gb", "fifteen")


def test_an_intel_mac_is_its_cpu_unless_it_has_a_card():
    without = memory_budget_for(32 * GIB, "14.5", "Intel Core i9")
    assert (without.device, without.limit_bytes, without.recommended_source) == ("cpu", None, "ram")
    with_card = memory_budget_for(32 * GIB, "14.5", "Intel Core i9", vram_bytes=8 * GIB)
    assert (with_card.device, with_card.total_bytes) == ("mps", 8 * GIB)
    assert any("Intel" in note for note in with_card.notes)


def test_another_mac_is_worked_out_without_torch():
    code = (
        "import sys, mpskit; b = mpskit.memory_budget_for(8 * 2**30, '26')\n"
        "from mpskit.cli.main import main; main(['budget', '--machine', 'm1-8gb'])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(b.recommended_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(M1_8GB)


def test_a_budget_reads_well_and_survives_json(machine, mps):
    machine("m1-8gb", memory_available=2 * GIB)
    found = memory_budget("mps")
    assert "usable" in str(found)
    assert "5.33 GiB" in str(memory_budget_for(8 * GIB))
    assert MemoryBudget.model_validate_json(found.model_dump_json()) == found


@given(
    recommended=st.none() | st.integers(0, 2**45),
    available=st.integers(0, 2**45),
    held=st.integers(0, 2**45),
    reserve=st.just(0) | st.integers(2**20, 2**45),
)
def test_usable_is_never_more_than_any_of_its_bounds(recommended, available, held, reserve):
    from mpskit.memory.budget import _settled

    given_ = MemoryBudget(
        device="mps",
        total_bytes=8 * GIB,
        recommended_bytes=recommended,
        available_bytes=available,
        reserved_bytes=held,
    )
    usable = _settled(given_, reserve, available=available).usable_bytes
    if recommended is None:
        assert usable is None
    else:
        assert usable == max(0, min(recommended - held, available) - reserve)


def test_machine_names_are_checked():
    with pytest.raises(UnknownMachineError):
        find_machine("m0-8gb")


# Other programs


def test_a_process_that_may_not_be_asked_is_left_out(monkeypatch):
    def denied(self):
        raise psutil.AccessDenied(self.pid)

    # The platform's own class: psutil.Process asks it, and looks after its errors.
    monkeypatch.setattr(type(psutil.Process()._proc), "memory_info", denied)
    assert users.largest_users() == ()
    assert memory_budget("cpu").users == ()


def test_a_list_of_processes_that_cannot_be_had_is_empty(monkeypatch):
    def fail(*_):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "process_iter", fail)
    assert users.largest_users() == ()


class Process:
    def __init__(self, pid, name, rss):
        self.pid = pid
        info = None if rss is None else type("Info", (), {"rss": rss})()
        self.info = {"name": name, "memory_info": info}


def test_programs_are_added_up_by_name_and_nothing_else_is_told(monkeypatch):
    import os

    monkeypatch.setattr(
        psutil,
        "process_iter",
        lambda fields: [
            Process(1, "Safari", 3 * GIB),
            Process(2, "Safari", GIB),
            Process(3, "/Users/someone/bin/tool", 2 * GIB),
            Process(4, None, GIB),
            Process(5, "denied", None),
            Process(os.getpid(), "python", 9 * GIB),
        ],
    )
    found = users.largest_users()
    assert [(user.name, user.resident_bytes, user.processes) for user in found] == [
        ("Safari", 4 * GIB, 2),
        ("tool", 2 * GIB, 1),
    ]
    assert "someone" not in memory_budget("cpu").model_dump_json()


@pytest.mark.parametrize("function", ["virtual_memory", "swap_memory", "process_iter"])
def test_a_malformed_proc_is_no_error(monkeypatch, function):
    def fail(*_):
        raise psutil.Error("malformed")

    monkeypatch.setattr(psutil, function, fail)
    found = memory_budget("cpu")
    assert found.usable_bytes is not None


def test_all_malformed_leaves_the_figures_out(machine):
    machine(Readings())
    found = memory_budget("cpu")
    assert (found.total_bytes, found.usable_bytes) == (None, None)
    assert torch.device(found.device) == torch.device("cpu")


QUIET = {
    "device": "mps",
    "total_bytes": 8 * GIB,
    "recommended_bytes": 5 * GIB,
    "recommended_source": "live",
    "limit_bytes": 8 * GIB,
    "available_bytes": 5 * GIB,
    "usable_bytes": GIB,
}


# What is otherwise than on a quiet Mac, and how the only note on it begins.
NOTES = [
    ({}, None),
    ({"limit_bytes": 8 * GIB + 1}, "PyTorch's own limit is above"),
    ({"limit_bytes": None}, "PYTORCH_MPS_HIGH_WATERMARK_RATIO is 0"),
    ({"limit_bytes": None, "recommended_source": "table"}, None),
    ({"available_bytes": 5 * GIB - 1}, "other programs hold memory"),
    ({"available_bytes": None}, None),
    ({"available_bytes": 1, "device": "cuda:0"}, None),
    ({"swap_used_bytes": 8 * GIB // 10}, None),
    ({"swap_used_bytes": 8 * GIB // 10 + 1}, "the machine already swaps"),
    ({"wired_limit_bytes": 6 * GIB}, "iogpu.wired_limit_mb overrides"),
    ({"recommended_bytes": None}, "Metal does not say"),
    ({"recommended_bytes": None, "device": "cuda:0"}, None),
    ({"usable_bytes": 0}, None),
    ({"usable_bytes": 0, "reserve_bytes": 1}, "nothing is left besides the reserve"),
    ({"usable_bytes": 1, "reserve_bytes": 1}, None),
    ({"usable_bytes": None, "reserve_bytes": 1}, None),
]


@pytest.mark.parametrize(("changes", "note"), NOTES)
def test_what_is_noted(changes, note):
    found = budgets._notes(MemoryBudget(**(QUIET | changes)))
    assert len(found) == (note is not None)
    assert note is None or found[0].startswith(note)


def test_of_a_machine_whose_memory_is_unknown_little_is_noted():
    unknown = MemoryBudget(device="cpu", swap_used_bytes=1)
    assert budgets._notes(unknown) == []
