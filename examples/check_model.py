"""Is a model right on this machine? Compare one of its training steps with the CPU's.

    mpskit check examples/check_model.py:make_model --batch 'float32[4,12,16]'
    mpskit simulate m2-16gb -- -m mpskit check examples/check_model.py:make_model \\
        --batch 'float32[4,12,16]'
    python examples/check_model.py --machine m2-16gb
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from torch import nn

import mpskit


class Tagger(nn.Module):
    """Attention, a two-layer LSTM with dropout and a linear head: where Macs were wrong."""

    def __init__(self, width: int = 16, tags: int = 5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(width, tags)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (batch, length, tags) for inputs (batch, length, width)."""
        x = self.norm(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        scores: torch.Tensor = self.head(self.lstm(x)[0])
        return scores


def make_model() -> nn.Module:
    """Return the model that the command checks."""
    return Tagger()


def main() -> None:
    """Check the model here, or on a simulated Mac."""
    parser = argparse.ArgumentParser(description="Compare a training step with the CPU's.")
    parser.add_argument("--machine", metavar="NAME", help="simulate this Mac, such as m2-16gb")
    machine = parser.parse_args().machine
    with mpskit.simulate(machine) if machine else contextlib.nullcontext():
        try:
            print(mpskit.find_divergence(make_model, mpskit.TensorSpec((4, 12, 16))))
        except mpskit.DeviceUnavailableError as error:
            print(error)


if __name__ == "__main__":
    main()
