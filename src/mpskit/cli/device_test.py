"""A real training step that is small enough for any machine."""

from __future__ import annotations

from typing import Any

__all__ = ["train_one_step"]


def train_one_step(device: str) -> str | None:
    """Train a small model for one step on ``device``.

    Returns:
        None if it worked, else the exception in one line.
    """
    try:
        _step(device)
    except Exception as error:  # noqa: BLE001 - the answer is whatever the backend raises
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _step(device: str) -> None:
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    model.to(device)
    images = torch.randn(4, 3, 16, 16, generator=generator).to(device)
    labels = torch.tensor([0, 1, 2, 3]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before: Any = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    optimizer.step()
    after = nn.functional.cross_entropy(model(images), labels)
    first, second = before.item(), after.item()
    if not second < first:
        raise ArithmeticError(f"the loss went from {first:g} to {second:g} in one step")
