"""A plan as the arguments of Lightning's Trainer, on simulated Macs."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpskit
from mpskit import plan_training

lightning = pytest.importorskip("lightning")

pytestmark = [
    pytest.mark.needs_torch("simulation"),
    # Lightning 2.6 on torch 2.13; it also advises of workers, checkpoints and a logger.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Module(lightning.LightningModule):
    def __init__(self, greedy=False):
        super().__init__()
        self.net, self.greedy, self.losses = nn.Linear(8, 1), greedy, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        if self.greedy:
            torch.empty(2**40, device=self.device)
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def planned(**asked):
    batch = (mpskit.TensorSpec((4, 8)), mpskit.TensorSpec((4, 1)))
    return plan_training(Module(), batch=batch, **({"effective_batch": 8} | asked))


def fit(plan, folder, *, greedy=False, **own):
    module = Module(greedy)
    data = TensorDataset(torch.randn(16, 8), torch.randn(16, 1))
    trainer = lightning.Trainer(**plan.to_lightning(default_root_dir=folder, **QUIET, **own))
    trainer.fit(module, DataLoader(data, **plan.loader))
    return trainer, module


@pytest.mark.parametrize("machine", ["m1-8gb", "m1-pro-16gb", "m3-max-64gb", "intel-mac-16gb"])
def test_one_plan_trains_on_every_mac(machine, tmp_path, watched):
    with mpskit.simulate(machine):
        plan = planned()
        trainer, module = fit(plan, tmp_path, max_epochs=2)
        assert trainer.strategy.root_device.type == plan.device
    assert len(module.losses) == 4  # two epochs of 16 rows, 8 at a time
    assert watched == ["training Module", "over"]
    callback = next(one for one in trainer.callbacks if type(one).__name__ == "PlanCallback")
    assert callback.monitor.timeline


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "32-true"),
        ({"weights_dtype": "bfloat16"}, "32-true"),  # a frozen base under float32 adapters
        ({"precision": "bf16-mixed", "autocast_dtype": "bfloat16"}, "bf16-mixed"),
        ({"precision": "fp16-mixed", "autocast_dtype": "float16"}, "16-mixed"),
        ({"precision": "bf16", "weights_dtype": "bfloat16"}, "bf16-true"),
        ({"precision": "fp16", "weights_dtype": "float16"}, "16-true"),
    ],
)
def test_lightning_knows_the_precision(fields, name, tmp_path):
    with mpskit.simulate("m3-max-64gb"):
        settings = (
            planned(fixed={"precision": "fp32"}).model_copy(update=fields).to_lightning(**QUIET)
        )
        assert settings["precision"] == name
        trainer = lightning.Trainer(default_root_dir=tmp_path, **settings)
        assert trainer.precision == name


def test_what_the_caller_decides_stays(tmp_path):
    plan = planned(machine="m1-8gb")
    mine = lightning.pytorch.Callback()
    settings = plan.to_lightning(max_epochs=7, callbacks=mine)
    assert settings["max_epochs"] == 7
    assert settings["accumulate_grad_batches"] == plan.accumulate
    assert settings["callbacks"][1:] == [mine]
    # A callback of the plan that the caller has made is not doubled.
    watch = settings["callbacks"][0]
    assert plan.to_lightning(callbacks=[watch])["callbacks"] == [watch]


def test_running_out_of_memory_names_the_next_plan(tmp_path, watched):
    with mpskit.simulate("m1-8gb"):
        plan = planned().model_copy(update={"batch_size": 8})
        with pytest.raises(RuntimeError, match=r"Invalid buffer size|out of memory") as caught:
            fit(plan, tmp_path, greedy=True)
        assert "Next plan: a batch of 4 x 2 accumulated" in caught.value.__notes__[0]
        assert watched == ["training Module", "over"]


def test_around_a_fit_the_error_carries_the_next_plan(tmp_path, watched):
    with mpskit.simulate("m1-8gb"):
        plan = planned().model_copy(update={"batch_size": 8})
        settings = plan.to_lightning()
        with pytest.raises(mpskit.OutOfMemory) as caught, settings["callbacks"][0]:
            fit(plan, tmp_path, greedy=True, callbacks=settings["callbacks"])
        smaller = caught.value.next_plan
        assert (smaller.batch_size, smaller.accumulate) == (4, 2)
        trainer, module = fit(smaller, tmp_path, max_epochs=1)
    assert len(module.losses) == 4
    assert trainer.global_step == 2
    assert watched == ["training Module", "over"] * 2
