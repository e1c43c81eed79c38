"""The trainer on the devices of the machine that runs the tests."""

import pytest
import torch
from tiny_trainer import train


def test_it_trains_on_the_best_device(mpskit_device):
    model, losses = train()
    assert losses[-1] < losses[0] / 2
    assert next(model.parameters()).device.type == mpskit_device.type


def test_its_layer_works_on_every_device(mpskit_each_device):
    layer = torch.nn.Linear(8, 32).to(mpskit_each_device)
    assert layer(torch.ones(2, 8, device=mpskit_each_device)).shape == (2, 32)


@pytest.mark.mpskit_requires("accelerator")
def test_an_accelerator_is_chosen(mpskit_device):
    assert mpskit_device.type != "cpu"
