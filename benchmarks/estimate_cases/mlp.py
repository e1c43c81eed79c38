"""Multi-layer perceptrons, with every implementation of the optimizers."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from estimate_cases.case import Case, labelled

__all__ = ["CASES"]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)
    )


def tabular() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, 512)]
    for _ in range(6):
        layers += [nn.BatchNorm1d(512), nn.GELU(), nn.Dropout(0.1), nn.Linear(512, 512)]
    return nn.Sequential(*layers, nn.Linear(512, 2))


BATCH = labelled(256, 1024)
adamw, adam, sgd = torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD

CASES = [
    Case("mlp-sgd", "mlp", mlp, BATCH, partial(sgd, lr=0.1)),
    Case("mlp-adamw-loop", "mlp", mlp, BATCH, partial(adamw, foreach=False)),
    Case("mlp-adamw-foreach", "mlp", mlp, BATCH, partial(adamw, foreach=True)),
    Case("mlp-adamw-fused", "mlp", mlp, BATCH, partial(adamw, fused=True)),
    Case("mlp-bf16-mixed", "mlp", mlp, BATCH, adam, precision="bf16-mixed"),
    Case("mlp-bf16", "mlp", mlp, BATCH, adam, precision="bf16"),
    Case("mlp-accumulate", "mlp", mlp, BATCH, adamw, accumulate=4),
    Case("mlp-inference", "mlp", mlp, BATCH[0], None, inference=True),
    Case("tabular-adam", "mlp", tabular, labelled(4096, 64), adam),
]
