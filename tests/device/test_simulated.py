"""The decision on simulated machines: the whole way from readings to the device."""

import pytest
import torch

import mpskit
from mpskit.device import ReasonCode, probe

MACHINES = [
    # profile, device, why MPS is not it
    ("m1-8gb", "mps", None),
    ("m3-max-64gb", "mps", None),
    ("m6-32gb", "mps", None),
    ("a18-pro-8gb", "mps", None),
    ("intel-mac-32gb", "cpu", {ReasonCode.INTEL_MAC, ReasonCode.DISCRETE_GPU_UNSUPPORTED}),
    ("intel-mac-amd-32gb", "cpu", {ReasonCode.INTEL_MAC, ReasonCode.DISCRETE_GPU_UNSUPPORTED}),
    ("rosetta-m2-16gb", "cpu", {ReasonCode.ROSETTA}),
]


@pytest.mark.parametrize(("name", "device", "codes"), MACHINES, ids=[row[0] for row in MACHINES])
def test_the_decision(name, device, codes):
    before = mpskit.get_optimal_device()
    with mpskit.simulate(name):
        chosen, info = mpskit.get_optimal_device()
        assert chosen == torch.device(device)
        assert torch.ones(2, device=chosen).sum().item() == 2
        if codes:
            assert next(r for r in info.rejected if r.device == "mps").code in codes
    assert mpskit.get_optimal_device() == before


def test_a_hosted_runner_is_found_out_by_the_probe(monkeypatch):
    # The child imports torch, for which a busy machine may need more than the usual limit.
    monkeypatch.setattr(probe, "PROBE_SECONDS", 600.0)
    with mpskit.simulate("github-macos-15-vm"):
        assert torch.backends.mps.is_available()
        device, info = mpskit.get_optimal_device()
    assert device == torch.device("cpu")
    mps = next(r for r in info.rejected if r.device == "mps")
    assert mps.code is ReasonCode.VM_UNUSABLE
    assert "out of memory" in mps.reason


def test_an_old_macos():
    with mpskit.simulate("m1-8gb", macos="12.6"):
        info = mpskit.get_optimal_device().info
    assert next(r for r in info.rejected if r.device == "mps").code is ReasonCode.MACOS_TOO_OLD


def test_the_doctor_sees_the_simulated_mac(capsys):
    from mpskit.cli.main import main

    with mpskit.simulate("m1-16gb"):
        assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "PASS: forward, backward and optimizer step on mps" in printed
    assert "M1" in printed
    assert "macOS 15.6" in printed
