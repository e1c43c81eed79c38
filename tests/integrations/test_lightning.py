"""lightning's Trainer with accelerator="mps"."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.filterwarnings("default")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
        self.losses = []

    def training_step(self, batch, _):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fitted(folder, **options):
    def run(device):
        lightning.seed_everything(0, verbose=False)
        module = Module()
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **options,
        )
        data = TensorDataset(torch.randn(24, 8), torch.randn(24, 1))
        trainer.fit(module, DataLoader(data, batch_size=4))
        # Lightning moves the module back to the CPU when it has finished.
        return module.to(trainer.strategy.root_device), module.losses

    return run


def test_float32_is_bit_equal_to_the_cpu(both, tmp_path):
    inside, outside = both(fitted(tmp_path))
    assert inside == outside


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(on_mac, tmp_path, precision):
    mixed = on_mac(fitted(tmp_path, precision=precision))
    full = on_mac(fitted(tmp_path))
    assert mixed != full
    # Later ones differ by more: fp16 skips the steps whose scaled gradients overflow.
    assert mixed[0] == pytest.approx(full[0], abs=0.02)
    assert all(math.isfinite(loss) for loss in mixed)


def test_auto_chooses_the_mac(tmp_path):
    import mpskit

    with mpskit.simulate("m1-8gb"):
        trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
        assert trainer.strategy.root_device.type == "mps"
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer.strategy.root_device.type == "cpu"
