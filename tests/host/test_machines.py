"""Machine, its profiles and their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.host import Chip, Host, HostKind, Machine, find_machine, machine_names
from mpskit.host.machines import aliases, machines

GIB = 1024**3


@pytest.mark.parametrize("name", machine_names())
def test_a_profile_round_trips(name):
    machine = find_machine(name)
    host = Host.from_readings(machine.readings())
    assert host.is_mac
    assert host.kind is machine.kind
    assert host.memory_total_bytes == machine.ram_bytes == machine.ram_gib * GIB
    assert host.os_version == machine.macos
    assert host.gpu_cores == machine.gpu_cores
    assert host.is_vm == host.is_hosted_runner == (machine.kind is HostKind.MAC_VM)
    assert host.usable_cpus == host.logical_cpus > 1
    if machine.kind is not HostKind.INTEL_MAC:
        assert host.chip.name in machine.chip
        assert host.chip.generation


@pytest.mark.parametrize("name", machine_names())
def test_a_profile_is_valid_as_it_stands(name):
    """A profile is made without validation: a command that needs one must not pay for 66."""
    machine = find_machine(name)
    assert Machine(**machine.model_dump()) == machine
    chip = machine.chip_facts
    assert chip is None or Chip(**chip.model_dump()) == chip


def test_there_are_enough_of_them():
    assert len(machine_names()) >= 25
    kinds = {machine.kind for machine in machines().values()}
    assert kinds == {
        HostKind.APPLE_SILICON,
        HostKind.APPLE_SILICON_ROSETTA,
        HostKind.INTEL_MAC,
        HostKind.MAC_VM,
    }
    assert any(machine.gpu for machine in machines().values())
    chips = {machine.chip.split()[0] for machine in machines().values()}
    assert {"M1", "M2", "M3", "M4", "M5", "M6", "A18"} <= chips


@pytest.mark.parametrize(
    ("name", "chip", "ram"),
    [
        ("m1-8gb", "M1", 8),
        ("m3-max-64gb", "M3 Max", 64),
        ("a18-pro-8gb", "A18 Pro", 8),
        ("M3 Max 64GB", "M3 Max", 64),
        ("m3_max_64gb", "M3 Max", 64),
        ("apple m1 16 GiB", "M1", 16),
        ("macbook-air-m1-8gb", "M1", 8),
        ("MacBook Pro M1 16GB", "M1", 16),
        ("mac-studio-m2-ultra-192gb", "M2 Ultra", 192),
        ("macbook-neo-a18-pro-8gb", "A18 Pro", 8),
        ("github-macos-15-vm", "Apple M1 (Virtual)", 7),
        ("rosetta-m2-16gb", "M2", 16),
    ],
)
def test_names(name, chip, ram):
    machine = find_machine(name)
    assert (machine.chip, machine.ram_gib) == (chip, ram)


def test_a_profile_is_a_mac_on_15_6():
    assert find_machine("m1-8gb").macos == "15.6"
    assert find_machine("m1-8gb").aliases[0] == "macbook-air-m1-8gb"


def test_every_alias_leads_somewhere():
    assert not set(aliases()) & set(machine_names())
    for alias, name in aliases().items():
        assert find_machine(alias).name == name


@pytest.mark.parametrize("name", ["m3-max-63gb", "m1", "", "pentium", "\0", "m1-8gb-8gb"])
def test_an_unknown_name(name):
    with pytest.raises(UnknownMachineError) as caught:
        find_machine(name)
    assert caught.value.given == name
    assert isinstance(caught.value, LookupError)


def test_near_names_are_listed():
    with pytest.raises(UnknownMachineError, match="m3-max-64gb"):
        find_machine("m3-max-63gb")


def test_a_machine_by_hand():
    machine = Machine(chip="M3 Max", ram_gib=64, macos="15.6")
    assert machine.kind is HostKind.APPLE_SILICON
    assert machine.gpu_cores == 40
    assert find_machine(machine) is machine
    assert str(machine) == "M3 Max with 64 GiB, macOS 15.6"
    assert machine.aliases == ()
    assert machine.readings().sysctl["machdep.cpu.brand_string"] == "Apple M3 Max"


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"chip": "Intel Core i9"}, HostKind.INTEL_MAC),
        ({"chip": "Apple M1 (Virtual)"}, HostKind.MAC_VM),
        ({"chip": "M9 Ultra"}, HostKind.APPLE_SILICON),
        ({"chip": "M2", "kind": "apple-silicon-rosetta"}, HostKind.APPLE_SILICON_ROSETTA),
        ({"chip": "M2", "kind": "mac-vm"}, HostKind.MAC_VM),
        (
            {"chip": "Intel Core i7", "gpu": "AMD Radeon Pro 560X", "vram_gib": 4},
            HostKind.INTEL_MAC,
        ),
    ],
)
def test_the_kind_follows_the_chip(facts, kind):
    machine = Machine(ram_gib=16, macos=26, **facts)
    assert machine.kind is kind
    assert machine.macos == "26"
    host = Host.from_readings(machine.readings())
    assert host.kind is kind
    assert host.metal_device == (machine.gpu or host.metal_device)


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"chip": "M3", "ram_gib": 0}, ArgumentError),
        ({"chip": "", "ram_gib": 8}, ArgumentError),
        ({"chip": "M3", "ram_gib": "8"}, ArgumentTypeError),
        ({"chip": "M3", "ram_gib": True}, ArgumentTypeError),
        ({"chip": 3, "ram_gib": 8}, ArgumentTypeError),
        ({"ram_gib": 8}, ArgumentTypeError),
        ({"chip": "M3", "ram_gib": 8, "macos": "Sequoia"}, ArgumentError),
        ({"chip": "M3", "ram_gib": 8, "macos": None}, ArgumentTypeError),
        ({"chip": "M3", "ram_gib": 8, "kind": "linux"}, ArgumentError),
        ({"chip": "M3", "ram_gib": 8, "ram": 9}, ArgumentTypeError),
        ({"chip": "M3", "ram_gib": 8, "gpu_cores": -1}, ArgumentError),
    ],
)
def test_wrong_facts(facts, error):
    with pytest.raises(error) as caught:
        Machine(**facts)
    assert type(caught.value) is error
    assert caught.value.given in (*facts.values(), facts)


@pytest.mark.parametrize("wrong", [None, 8, b"m1-8gb", ["m1-8gb"]])
def test_a_machine_is_a_name_or_a_machine(wrong):
    with pytest.raises(ArgumentTypeError):
        find_machine(wrong)


@given(st.text(min_size=1, max_size=80), st.integers(1, 4096))
def test_any_chip_can_be_described(chip, ram):
    machine = Machine(chip=chip, ram_gib=ram)
    assert Host.from_readings(machine.readings()).memory_total_bytes == ram * GIB


PERFLEVELS = {
    "hw.perflevel0.physicalcpu": "4",
    "hw.perflevel0.name": "Performance",
    "hw.perflevel1.physicalcpu": "4",
    "hw.perflevel1.name": "Efficiency",
}
APPLE = {"hw.optional.arm64": "1", "sysctl.proc_translated": "0", "iogpu.wired_limit_mb": "0"}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("m1-8gb", APPLE | PERFLEVELS),
        ("rosetta-m2-16gb", APPLE | PERFLEVELS | {"sysctl.proc_translated": "1"}),
        ("intel-mac-32gb", {}),
    ],
)
def test_the_sysctls_that_only_apple_silicon_has(name, own):
    sysctl = find_machine(name).readings().sysctl
    names = {*APPLE, *PERFLEVELS}
    assert {key: value for key, value in sysctl.items() if key in names} == own


@pytest.mark.parametrize("wrong", ["8", 8.0, True])
@pytest.mark.parametrize("field", ["ram_gib", "gpu_cores", "cpu_cores", "vram_gib"])
def test_a_count_is_an_int(field, wrong):
    with pytest.raises(ArgumentTypeError):
        Machine(**{"chip": "M3", "ram_gib": 8} | {field: wrong})


@pytest.mark.parametrize(
    ("machine", "cpus"),
    [
        (Machine(chip="M1", ram_gib=8), 8),
        (Machine(chip="M1", ram_gib=8, cpu_cores=6), 6),
        (Machine(chip="M99", ram_gib=8), None),
        (Machine(chip="Intel Core i9", ram_gib=16), None),
        (Machine(chip="Intel Core i9", ram_gib=16, cpu_cores=8), 8),
    ],
)
def test_the_cpus_and_the_memory_in_the_readings(machine, cpus):
    readings = machine.readings()
    assert (readings.logical_cpus, readings.physical_cpus) == (cpus, cpus)
    assert readings.memory_available == machine.ram_gib * GIB * 3 // 4
    assert (readings.swap_total, readings.swap_used) == (0, 0)
