"""Lightning: fit with validation."""

import lightning
import torch
from torch import nn


class Net(lightning.LightningModule):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 10))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        """Log the loss."""
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters())


lightning.seed_everything(0)
data = torch.utils.data.TensorDataset(torch.randn(64, 256), torch.randint(10, (64,)))
loader = torch.utils.data.DataLoader(data, batch_size=16)
lightning.Trainer(
    accelerator="mps", max_steps=3, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, val_check_interval=1,
).fit(Net(), loader, loader)  # fmt: skip
