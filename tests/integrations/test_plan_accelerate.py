"""A plan as the arguments of accelerate's Accelerator, on simulated Macs."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpskit
from mpskit import plan_training

accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.needs_torch("simulation")


@pytest.fixture(autouse=True)
def _a_new_script():
    """Forget the device of the last Accelerator, as a new process would."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def planned(**fixed):
    batch = (mpskit.TensorSpec((4, 8)), mpskit.TensorSpec((4, 1)))
    decided = {"batch_size": 4} | fixed
    return plan_training(nn.Linear(8, 1), batch=batch, effective_batch=8, fixed=decided)


@pytest.mark.parametrize("machine", ["m1-8gb", "m1-pro-16gb", "m3-max-64gb", "intel-mac-16gb"])
def test_one_plan_trains_on_every_mac(machine, watched):
    with mpskit.simulate(machine):
        plan = planned()
        accelerator = accelerate.Accelerator(**plan.to_accelerate())
        assert accelerator.device.type == plan.device
        assert accelerator.gradient_accumulation_steps == plan.accumulate == 2
        model = nn.Linear(8, 1)
        data = TensorDataset(torch.randn(16, 8), torch.randn(16, 1))
        model, optimizer, loader = accelerator.prepare(
            model, torch.optim.AdamW(model.parameters()), DataLoader(data, **plan.loader)
        )
        steps = 0
        with plan.watch() as watch:
            for inputs, targets in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    steps += 1
                    watch.step()
    assert steps == 2
    assert watched == ["training Linear", "over"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "no"),
        ({"precision": "bf16", "weights_dtype": "bfloat16"}, "no"),
        ({"precision": "bf16-mixed", "autocast_dtype": "bfloat16"}, "bf16"),
        ({"precision": "fp16-mixed", "autocast_dtype": "float16"}, "fp16"),
    ],
)
def test_accelerate_knows_the_precision(fields, name):
    with mpskit.simulate("m3-max-64gb"):
        plan = planned(precision="fp32").model_copy(update=fields)
        accelerator = accelerate.Accelerator(**plan.to_accelerate())
        assert accelerator.mixed_precision == name


def test_what_the_caller_decides_stays():
    with mpskit.simulate("m1-8gb"):
        found = planned(precision="fp32").to_accelerate(
            mixed_precision="fp16", step_scheduler_with_optimizer=False
        )
    assert found == {
        "cpu": False,
        "mixed_precision": "fp16",
        "gradient_accumulation_steps": 2,
        "step_scheduler_with_optimizer": False,
    }
