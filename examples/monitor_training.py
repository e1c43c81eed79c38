"""Train with everything that belongs around a loop, and see where the memory went.

    python examples/monitor_training.py [--epochs 4] [--out out] [--machine m1-8gb]

A small convolutional net learns to tell circles from squares. Around the loop: the device, the
DataLoader arguments and the precision that suit it, safe transfer of batches, a cache cleared only
now and then, the machine kept awake, and memory sampled on a thread. Writes OUT/memory.csv, and
with matplotlib OUT/memory.png. With --machine the same runs on a simulated Mac.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mpskit import (
    CacheKeeper,
    MemoryMonitor,
    MissingExtraError,
    autocast,
    dataloader_kwargs,
    get_optimal_device,
    grad_scaler,
    keep_awake,
    precision_for,
    simulate,
    to_device,
)

SIZE = 32


class Shapes(Dataset[dict[str, torch.Tensor]]):
    """Pictures of a filled circle (0) or square (1), of any radius and place, in noise."""

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return ``image`` (1, SIZE, SIZE) and ``label``, the same for the same index."""
        random = torch.Generator().manual_seed(index)
        x, y, radius = (torch.rand(3, generator=random) * 8 + torch.tensor([12, 12, 5])).tolist()
        rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        across, down = (columns - x).abs(), (rows - y).abs()
        circle = (across.pow(2) + down.pow(2)).sqrt() < radius
        image = circle if index % 2 == 0 else torch.maximum(across, down) < radius
        noise = 0.2 * torch.randn(SIZE, SIZE, generator=random)
        return {"image": (image + noise).unsqueeze(0), "label": torch.tensor(index % 2)}


def make_model() -> nn.Module:
    """Return two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(512, 2),
    )  # fmt: skip


def train(device: torch.device, epochs: int) -> list[float]:
    """Train, and return the share of right answers of each epoch."""
    torch.manual_seed(0)
    dataset = Shapes()
    loader = DataLoader(
        dataset, shuffle=True, **dataloader_kwargs(device, batch_size=32, dataset=dataset)
    )
    model = make_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scaler, keeper = grad_scaler(device), CacheKeeper(device, every=100)
    accuracies = []
    for _ in range(epochs):
        right = torch.zeros((), device=device)
        for batch in loader:
            on_device = to_device(batch, device)
            with autocast(device):
                scores = model(on_device["image"])
            loss = nn.functional.cross_entropy(scores.float(), on_device["label"])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            keeper.step()
            right += (scores.argmax(1) == on_device["label"]).sum()
        # One transfer an epoch: asking in every step would make the CPU wait for the device.
        accuracies.append(right.item() / len(dataset))
        print(f"epoch {len(accuracies)}: {accuracies[-1]:.1%} right", flush=True)
    return accuracies


def main() -> int:
    """Train under the monitor and write what it saw; 1 if nothing was learnt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--machine", help="simulate this Mac, such as m1-8gb")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = simulate(arguments.machine) if arguments.machine else contextlib.nullcontext()
    with machine:
        device, info = get_optimal_device()
        print(info.reason, precision_for(device), sep="\n")
        with keep_awake("training"), MemoryMonitor(device, interval=0.1) as monitor:
            accuracies = train(device, arguments.epochs)
        print(monitor)
        print(f"timeline: {monitor.to_csv(arguments.out / 'memory.csv')}")
        try:
            print(f"picture: {monitor.plot(arguments.out / 'memory.png')}")
        except MissingExtraError as error:
            print(error)
    return int(accuracies[-1] < 0.75)


if __name__ == "__main__":
    sys.exit(main())
