"""An LSTM that forecasts a series: where the CPU of a Mac is faster than its GPU.

    python examples/lstm_forecast.py [--epochs 3] [--out out/lstm] [--resume]
    mpskit simulate m1-pro-16gb -- examples/lstm_forecast.py
    mpskit rehearse m1-pro-16gb -- examples/lstm_forecast.py

A recurrent network is many small steps that wait for one another: too little work for a GPU. The
choice weighs this very model with one of its batches; nothing is measured unless ``measure=`` says
so. Writes a checkpoint and, with matplotlib, memory.png into OUT.
"""

from __future__ import annotations

import sys

import torch
from loop import arguments, fit, learnt
from torch import nn
from torch.utils.data import TensorDataset

import mpskit
from mpskit import plan_training

LENGTH, WIDTH = 24, 32


class Forecast(nn.Module):
    """Two LSTM layers and the next value."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 1), the value after the series (batch, LENGTH, 1)."""
        forecast: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
        return forecast


def series(count: int) -> TensorDataset:
    """Return windows of two sine waves with noise, and the value after each."""
    random = torch.Generator().manual_seed(0)
    time = torch.arange(count + LENGTH) * 0.2
    values = (
        time.sin() + 0.5 * (0.31 * time).sin() + 0.05 * torch.randn(len(time), generator=random)
    )
    windows = values.unfold(0, LENGTH + 1, 1)[:count]
    return TensorDataset(windows[:, :-1, None].clone(), windows[:, -1:].clone())


def main() -> int:
    """Choose the device for this model, plan, train; 1 if nothing was learnt."""
    counts = {"epochs": 3, "samples": 512, "batch": 32}
    asked = arguments(__doc__, "out/lstm", **counts).parse_args()
    torch.manual_seed(0)
    model, data = Forecast(), series(asked.samples)
    batch = tuple(tensor[: asked.batch] for tensor in data.tensors)
    device, info = mpskit.get_optimal_device(workload=(model, batch))
    print(info)
    plan = plan_training(model, batch=batch, device=device, effective_batch=asked.batch)
    print(plan)
    model = model.to(plan.device)
    losses = fit(
        plan,
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        data,
        nn.functional.mse_loss,
        epochs=asked.epochs,
        checkpoint=asked.out / "lstm.pt",
        resume=asked.resume,
        picture=asked.out / "memory.png",
    )
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} on {plan.device}")
    return int(not learnt(losses))


if __name__ == "__main__":
    sys.exit(main())
