"""The simulated machine beside torch."""

import os
import platform
import sys

import psutil
import pytest
import torch

import mpskit
from mpskit.host import HostKind, detect_host, find_machine

GIB = 1024**3


def looks():
    return (
        platform.machine(),
        platform.processor(),
        platform.mac_ver(),
        psutil.virtual_memory().total,
        psutil.swap_memory().total,
        detect_host().kind,
    )


@pytest.mark.parametrize(
    ("name", "machine", "processor"),
    [
        ("m1-8gb", "arm64", "arm"),
        ("m3-max-64gb", "arm64", "arm"),
        ("rosetta-m2-16gb", "x86_64", "i386"),
        ("intel-mac-amd-32gb", "x86_64", "i386"),
        ("github-macos-15-vm", "arm64", "arm"),
    ],
)
def test_the_host_looks_the_part(name, machine, processor):
    profile = find_machine(name)
    before = looks()
    with mpskit.simulate(name):
        inside = looks()
    assert inside[:3] == (machine, processor, (profile.macos, ("", "", ""), machine))
    assert inside[3:] == (profile.ram_bytes, 0, profile.kind)
    assert looks() == before


def test_what_tells_how_to_use_the_system_stays():
    facts = (sys.platform, os.name, platform.system(), platform.platform(), platform.uname())
    with mpskit.simulate("m1-8gb"):
        inside = (sys.platform, os.name, platform.system(), platform.platform(), platform.uname())
    assert inside == facts


def test_the_gpu_takes_its_memory_from_the_same_ram():
    with mpskit.simulate("m1-8gb"):
        idle = psutil.virtual_memory()
        tensor = torch.zeros(4 * 1024**2, device="mps")
        busy = psutil.virtual_memory()
        assert idle.available == 6 * GIB
        assert idle.available - busy.available == torch.mps.driver_allocated_memory() == GIB
        assert busy.percent > idle.percent
        del tensor


def test_mpskit_sees_the_machine_with_the_python_that_runs():
    with mpskit.simulate("m3-max-64gb", macos="14.5"):
        host = detect_host()
    assert host.kind is HostKind.APPLE_SILICON
    assert (host.chip.name, host.gpu_cores, host.os_version) == ("M3 Max", 40, "14.5")
    assert host.memory_total_bytes == 64 * GIB
    assert host.python_version == detect_host().python_version
    assert host.torch_version == torch.__version__


def test_everything_is_undone_after_an_error():
    before = looks()
    with pytest.raises(ZeroDivisionError), mpskit.simulate("m1-8gb"):
        raise ZeroDivisionError
    assert looks() == before
