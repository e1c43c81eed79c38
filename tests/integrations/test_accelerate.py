"""An Accelerator loop, as accelerate's own documentation writes it."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("default")


def loop(**options):
    def run(device):
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=device == "cpu", **options)
        assert accelerator.device.type == device
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = TensorDataset(torch.randn(24, 8), torch.randn(24, 1))
        loader = DataLoader(data, batch_size=4, shuffle=True)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        losses = []
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(accelerator.gather(loss).item())
        # As a new script would begin; accelerate keeps the device of the first one otherwise.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        return model, losses

    return run


@pytest.mark.parametrize("steps", [1, 2])
def test_float32_is_bit_equal_to_the_cpu(both, steps):
    inside, outside = both(loop(gradient_accumulation_steps=steps))
    assert inside == outside


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(on_mac, precision):
    mixed = on_mac(loop(mixed_precision=precision))
    full = on_mac(loop())
    assert mixed != full
    # Later ones differ by more: fp16 skips the steps whose scaled gradients overflow.
    assert mixed[0] == pytest.approx(full[0], abs=0.02)
    assert all(math.isfinite(loss) for loss in mixed)


def test_the_state_of_a_run_outside_is_put_back(on_mac):
    state = accelerate.PartialState(cpu=True)
    assert len(on_mac(loop())) == 6
    assert accelerate.PartialState().device.type == "cpu"
    assert state.device.type == "cpu"
    accelerate.state.PartialState._reset_state()
