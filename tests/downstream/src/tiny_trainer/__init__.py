"""A small trainer that runs on whatever device the machine has."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mpskit import get_optimal_device


class Sums(Dataset):
    """Eight numbers and their sum."""

    def __init__(self, length: int = 256) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(length, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.inputs[index]
        return row, row.sum()


def train(epochs: int = 2, workers: int = 0) -> tuple[nn.Module, list[float]]:
    """Train a small network; return it and the loss of each step."""
    device, info = get_optimal_device()
    print(info.reason)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(epochs):
        for inputs, targets in DataLoader(Sums(), batch_size=32, num_workers=workers):
            predicted = model(inputs.to(device)).squeeze(-1)
            loss = nn.functional.mse_loss(predicted, targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, losses
