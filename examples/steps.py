"""Steps to be timed: ``mpskit compare examples/steps.py:make_step`` (or mlp, lstm, resnet).

Each function gets a device's name and returns one training step there, a function without
arguments. ``make_step`` is the small transformer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn


def training(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """Return a step that trains ``model`` on one batch, over and over."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        result = model(inputs)
        loss = nn.functional.cross_entropy(result.flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def mlp(device: str) -> Callable[[], None]:
    """A tiny perceptron: too little work for a GPU."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
    inputs = torch.randn(32, 16, device=device)
    return training(model, inputs, torch.randint(4, (32,), device=device))


class LastState(nn.Module):
    """An LSTM with a classifier on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of a batch of sequences."""
        result: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
        return result


def lstm(device: str) -> Callable[[], None]:
    """A recurrent network: many small steps that wait for one another."""
    inputs = torch.randn(16, 100, 32, device=device)
    return training(LastState().to(device), inputs, torch.randint(10, (16,), device=device))


class Block(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and width == out
        self.skip = nn.Identity() if same else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet(device: str) -> Callable[[], None]:
    """ResNet-18 on CIFAR-shaped images: convolutions, where a GPU is at its best."""
    widths = (64, 64, 128, 256, 512)
    blocks = [
        block
        for i, (width, out) in enumerate(itertools.pairwise(widths))
        for block in (Block(width, out, 1 if i == 0 else 2), Block(out, out, 1))
    ]
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    ).to(device)
    inputs = torch.randn(8, 3, 32, 32, device=device)
    return training(model, inputs, torch.randint(10, (8,), device=device))


def transformer(device: str) -> Callable[[], None]:
    """A small transformer over 128 tokens."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(1000, 256), nn.TransformerEncoder(layer, 4), nn.Linear(256, 1000)
    ).to(device)
    tokens = torch.randint(1000, (4, 128), device=device)
    return training(model, tokens, tokens)


make_step = transformer
