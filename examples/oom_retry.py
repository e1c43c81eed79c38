"""Run out of memory on purpose, and let mpskit find the batch size that fits.

    python examples/oom_retry.py [--start 512] [--limit 2GiB] [--machine m1-8gb]

The model attends over 256 positions, so its memory grows by some 10 MiB with each item of the
batch. A cap on memory makes the first batch size fail as it would on a small machine; each next one
is chosen from the figures of the error. With --machine the same runs on a simulated Mac, with that
Mac's own errors.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys

import torch
from torch import nn

from mpskit import get_optimal_device, limit_memory, run_with_batch_size, simulate

LENGTH, WIDTH, HEADS = 256, 64, 8


class Attention(nn.Module):
    """Attention written out, so that its score matrices are kept for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, width) to the same shape."""
        heads = self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()
        scores = (query @ key.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
        return x + self.out((scores @ value).transpose(1, 2).flatten(2))


def train_step(model: nn.Module, batch_size: int, device: torch.device) -> float:
    """Do one step of training and return its loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(batch_size, LENGTH, WIDTH, device=device)
    loss = (model(x) - x.flip(1)).pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def find_batch_size(start: int, limit: str, device: torch.device) -> int:
    """Return the batch size that trains under the cap."""
    model = Attention().to(device)

    def attempt(batch_size: int) -> int:
        print(f"trying a batch of {batch_size}", flush=True)
        loss = train_step(model, batch_size, device)
        print(f"a batch of {batch_size} fits (loss {loss:.3f})")
        return batch_size

    with limit_memory(limit, device) as cap:
        print(cap)
        return run_with_batch_size(attempt, start, device=device)


def main() -> int:
    """Find the batch size and say what happened on the way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=512, help="first batch size to try")
    parser.add_argument("--limit", default="2GiB", help="cap on memory, such as 2GiB or 50%%")
    parser.add_argument("--machine", help="simulate this Mac, such as m1-8gb")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mpskit").setLevel(logging.INFO)
    machine = simulate(arguments.machine) if arguments.machine else contextlib.nullcontext()
    with machine:
        device, _ = get_optimal_device()
        fits = find_batch_size(arguments.start, arguments.limit, device)
    return int(fits >= arguments.start)


if __name__ == "__main__":
    sys.exit(main())
