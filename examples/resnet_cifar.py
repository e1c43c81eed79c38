"""ResNet-18 on CIFAR-shaped pictures with several optimizers: what each needs, and how each learns.

    python examples/resnet_cifar.py [--optimizers sgd adamw adam] [--out out/resnet] [--resume]
    mpskit simulate m1-pro-16gb -- examples/resnet_cifar.py --width 8
    mpskit rehearse m1-8gb m2-pro-16gb -- examples/resnet_cifar.py

The pictures are coloured noise whose class is its brightest colour and side; nothing is downloaded.
Writes a checkpoint and, with matplotlib, the memory of each optimizer into OUT.
"""

from __future__ import annotations

import functools
import itertools
import sys

import torch
from loop import arguments, fit, learnt
from torch import nn
from torch.utils.data import TensorDataset

import mpskit
from mpskit import TrainingPlan, plan_training

CLASSES, SIDE = 6, 32
# name -> what makes it, with the learning rate that is usual for it
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "adam": functools.partial(torch.optim.Adam, lr=1e-3),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-4),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=1e-2),
}


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, out, side / stride, side / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 as it is used on pictures of 32 x 32: no stride and no pooling at first."""

    def __init__(self, width: int = 64) -> None:
        torch.manual_seed(0)
        widths = [width, *(width * 2**stage for stage in range(4))]
        blocks = [
            block
            for stage, (before, after) in enumerate(itertools.pairwise(widths))
            for block in (Block(before, after, 2 if stage else 1), Block(after, after, 1))
        ]
        super().__init__(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], CLASSES),
        )


def pictures(count: int) -> TensorDataset:
    """Return noise in which one half of one colour is brighter."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, SIDE, SIDE, generator=random)
    labels = torch.arange(count) % CLASSES
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3, :, : SIDE // 2] += 0.5 * (label // 3)
        image[label % 3, :, SIDE // 2 :] += 0.5 * (1 - label // 3)
    return TensorDataset(images, labels)


def train(plan: TrainingPlan, name: str, asked: object) -> list[float]:
    """Train with one optimizer; on running out of memory go on with the next plan."""
    make, data = OPTIMIZERS[name], pictures(asked.samples)
    try:
        model = ResNet18(asked.width).to(plan.device)
        return fit(
            plan,
            model,
            make(model.parameters()),
            data,
            nn.functional.cross_entropy,
            epochs=asked.epochs,
            checkpoint=asked.out / f"{name}.pt",
            resume=asked.resume,
            picture=asked.out / f"{name}.png",
        )
    except mpskit.OutOfMemory as error:
        if error.next_plan is None:
            raise
        print(error)
        smaller = error.next_plan
    return train(smaller, name, asked)


def main() -> int:
    """Compare the optimizers; 1 if one of them learnt nothing."""
    counts = {"epochs": 2, "samples": 96, "batch": 16, "width": 64}
    parser = arguments(__doc__, "out/resnet", **counts)
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adamw"], choices=OPTIMIZERS)
    asked = parser.parse_args()
    batch = (
        mpskit.TensorSpec((asked.batch, 3, SIDE, SIDE)),
        mpskit.TensorSpec((asked.batch,), "int64"),
    )
    rows, all_learnt = [], True
    for name in asked.optimizers:
        plan = plan_training(
            ResNet18(asked.width),
            batch=batch,
            effective_batch=asked.batch,
            optimizer=name,
            samples=asked.samples,
        )
        print(plan)
        losses = train(plan, name, asked)
        all_learnt = all_learnt and learnt(losses)
        need = plan.needed_bytes / 2**20
        rows.append(f"{name:<8} needs {need:6.1f} MiB, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(*rows, sep="\n")
    return int(not all_learnt)


if __name__ == "__main__":
    sys.exit(main())
