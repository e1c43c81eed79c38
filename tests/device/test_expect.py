"""What is expected without torch is what `get_optimal_device` decides: one rule, other facts."""

import pytest

from mpskit import get_optimal_device
from mpskit.device.expect import expected_device
from mpskit.host import detect_host, find_machine
from mpskit.system.machine import replace_readings


@pytest.fixture
def expected_on():
    def expect(name):
        replace_readings(find_machine(name).readings())
        return expected_device()

    yield expect
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
