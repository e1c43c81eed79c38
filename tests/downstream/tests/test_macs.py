"""The trainer on Macs that nobody here has."""

import pytest
import torch
from tiny_trainer import train

MACS = ("m1-8gb", "m2-pro-32gb", "m3-max-64gb", "m4-16gb", "a18-pro-8gb")


@pytest.mark.mpskit_machine(*MACS)
@pytest.mark.mpskit_no_cpu_fallback
@pytest.mark.mpskit_max_memory("16MiB")
def test_it_trains(mpskit_mac):
    model, losses = train()
    assert losses[-1] < losses[0] / 2
    assert {str(p.device) for p in model.parameters()} == {"mps:0"}


@pytest.mark.mpskit_machine("m1-8gb")
def test_its_workers_are_spawned():
    _, losses = train(epochs=1, workers=1)
    assert len(losses) == 8


@pytest.mark.mpskit_machine("intel-mac-32gb", "rosetta-m2-16gb")
def test_it_uses_the_cpu_of_other_macs():
    model, _ = train(epochs=1)
    assert next(model.parameters()).device.type == "cpu"


def test_the_losses_are_the_cpus(mpskit_mac):
    inside = train()[1]
    mpskit_mac.__exit__(None, None, None)
    outside = train()[1]
    mpskit_mac.__enter__()
    assert inside == outside


def test_a_checkpoint_moves(mpskit_mac, tmp_path):
    model, _ = train(epochs=1)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt")["0.weight"].is_mps
    assert torch.load(tmp_path / "model.pt", map_location="cpu")["0.weight"].device.type == "cpu"
