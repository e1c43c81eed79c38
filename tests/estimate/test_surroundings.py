"""An estimate inside an autocast region."""

import pytest
import torch
from torch import nn

from mpskit.estimate import TensorSpec, estimate_training_memory

pytestmark = pytest.mark.needs_torch("estimate")

X = TensorSpec((64, 256))


def told(device):
    return estimate_training_memory(lambda: nn.Linear(256, 256), X, device=device)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_autocast_around_the_call_is_counted_and_noted(device):
    bare = told(device)
    try:
        region = torch.autocast(device, torch.bfloat16)
    except RuntimeError as error:  # 2.9.1 asks for the version of macOS, on Linux too
        pytest.skip(f"torch {torch.__version__} has no autocast for {device} here: {error}")
    with region:
        found = told(device)
        assert torch.is_autocast_enabled(device)
    note = "autocast to torch.bfloat16 is on around the estimate, and is in the figures"
    assert note in found.notes
    # The weight's cast is kept until the region ends, here after both steps.
    assert found.activations_bytes - bare.activations_bytes >= 256 * 256 * 2
    assert told(device) == bare


def test_autocast_of_another_device_is_not():
    bare = told("mps")
    with torch.autocast("cpu", torch.bfloat16):
        assert told("mps") == bare
        assert torch.is_autocast_enabled("cpu")


def test_autocast_around_the_call_keeps_the_real_weights():
    model, x = nn.Linear(16, 4), torch.ones(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        estimate_training_memory(model, x, device="cpu")
        assert torch.equal(model(x), before)
