"""A Lightning module: planned, capped, watched, resumable.

    python examples/lightning_digits.py [--epochs 3] [--out out/lightning] [--resume]
    mpskit simulate m3-max-64gb -- examples/lightning_digits.py
    mpskit rehearse m1-8gb -- examples/lightning_digits.py

The digits of a seven-segment display in noise; nothing is downloaded. Writes a checkpoint and, with
matplotlib, memory.png into OUT.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpskit
from mpskit import TrainingPlan, plan_training

# The lit segments of 0 to 9: top, the two upper sides, the middle, the two lower sides, the bottom.
SEGMENTS = [0x77, 0x24, 0x5D, 0x6D, 0x2E, 0x6B, 0x7B, 0x25, 0x7F, 0x6F]


class Digits(lightning.LightningModule):
    """Reads a digit from seven noisy segments."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 128), nn.GELU(), nn.Linear(128, 10))
        self.losses: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores (batch, 10) for segments (batch, 7)."""
        scores: torch.Tensor = self.net(x)
        return scores

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        segments, digits = batch
        loss = nn.functional.cross_entropy(self(segments), digits)
        self.losses.append(loss.detach())  # a tensor: a number would make the host wait each step
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, as planned."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def displays(count: int) -> TensorDataset:
    """Return noisy segments and their digits."""
    random = torch.Generator().manual_seed(0)
    digits = torch.randint(10, (count,), generator=random)
    lit = torch.tensor([[code >> bit & 1 for bit in range(7)] for code in SEGMENTS])
    segments = lit[digits] + 0.3 * torch.randn(count, 7, generator=random)
    return TensorDataset(segments, digits)


def train(plan: TrainingPlan, asked: argparse.Namespace) -> list[float]:
    """Train as planned and return the losses; OutOfMemory carries the next plan."""
    torch.manual_seed(0)
    module, last = Digits(), asked.out / "last.ckpt"
    settings = plan.to_lightning(
        max_epochs=asked.epochs, default_root_dir=asked.out, logger=False, log_every_n_steps=1,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    watch = settings["callbacks"][0]
    capped = plan.device != "cpu"
    cap = mpskit.limit_memory(plan.cap_bytes, plan.device) if capped else contextlib.nullcontext()
    with cap, watch:
        trainer = lightning.Trainer(**settings)
        loader = DataLoader(displays(asked.samples), shuffle=True, **plan.loader)
        trainer.fit(module, loader, ckpt_path=last if asked.resume else None)
        trainer.save_checkpoint(last)
    print(watch.monitor)
    with contextlib.suppress(mpskit.MissingExtraError):
        print(f"memory: {watch.plot(asked.out / 'memory.png')}")
    return torch.stack(module.losses).tolist()


def main() -> int:
    """Plan for this machine and train; 1 if nothing was learnt from the start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/lightning"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    batch = tuple(tensor[:32] for tensor in displays(32).tensors)
    plan: TrainingPlan | None = plan_training(Digits(), batch=batch, effective_batch=32)
    while plan is not None:
        print(plan)
        try:
            losses = train(plan, asked)
            print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
            return int(not asked.resume and losses[-1] >= losses[0])
        except mpskit.OutOfMemory as error:
            print(error)
            plan = error.next_plan
    return 1


if __name__ == "__main__":
    sys.exit(main())
