"""What is expected without torch is what `get_optimal_device` decides: one rule, other facts."""

import pytest

from mpskit import get_optimal_device
from mpskit.device import expect
from mpskit.device.expect import expected_device
from mpskit.host import Readings, detect_host, find_machine
from mpskit.system.machine import replace_readings


@pytest.fixture
def expected_on():
    def on(machine):
        known = isinstance(machine, str)
        replace_readings(find_machine(machine).readings() if known else machine)
        detect_host(refresh=True)
        return expected_device()

    yield on
    replace_readings(None)
    detect_host(refresh=True)


@pytest.mark.parametrize(
    "name", ["m1-8gb", "rosetta-m2-16gb", "github-macos-15-vm", "intel-mac-32gb"]
)
@pytest.mark.parametrize("variables", [{}, {"MPSKIT_POLICY": "conservative"},
                                       {"MPSKIT_DISABLE_MPS": "1"}, {"MPSKIT_DEVICE": "cpu"}])  # fmt: skip
def test_it_is_what_would_be_chosen(expected_on, on_machine, monkeypatch, name, variables):
    for variable, text in variables.items():
        monkeypatch.setenv(variable, text)
    native = name in ("m1-8gb", "github-macos-15-vm")
    on_machine(name, mps=native, built=native)
    monkeypatch.setattr("mpskit.device.probe.probe_mps", lambda *_: None)
    assert expected_on(name) == str(get_optimal_device().device)


NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
LINUX = Readings(system="Linux", machine="x86_64")


@pytest.mark.parametrize(
    ("torch", "cards", "readings", "device"),
    [
        ("2.13.0+cu128", NVIDIA, LINUX, "cuda:0"),
        ("2.13.0+cu128", AMD, LINUX, "cpu"),
        ("2.13.0+rocm6.4", AMD, LINUX, "cuda:0"),
        ("2.13.0+rocm6.4", NVIDIA, LINUX, "cpu"),
        ("2.13.0+xpu", INTEL, LINUX, "xpu:0"),
        ("2.13.0+xpu", NVIDIA, LINUX, "cpu"),
        ("2.13.0", NVIDIA, LINUX, "cuda:0"),
        ("2.13.0", AMD, LINUX, "cpu"),
        ("2.13.0+cpu", NVIDIA, LINUX, "cpu"),
        ("2.13.0+cu128", NVIDIA, Readings(system="Windows", machine="AMD64"), "cpu"),
    ],
)
def test_a_wheel_and_a_card_of_its_vendor(expected_on, monkeypatch, torch, cards, readings, device):
    monkeypatch.setattr(expect, "torch_version", lambda: torch)
    monkeypatch.setattr(expect, "card_count", lambda vendor: int(vendor == cards))
    assert expected_on(readings) == device
