"""One case: a model, a batch, and how it is trained or run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from mpskit.estimate import TensorSpec

__all__ = ["Case", "labelled", "spec", "tokens"]


@dataclass(frozen=True)
class Case:
    """A row of the benchmark.

    ``limit`` is how far the estimate may be off: 1% for transformers and MLPs, 3% for
    convolutional and recurrent models, whose CPU kernels take workspaces of their own.
    """

    name: str
    family: Literal["mlp", "conv", "rnn", "transformer"]
    model: Callable[[], torch.nn.Module]
    batch: Any
    optimizer: Callable[..., torch.optim.Optimizer] | None = torch.optim.AdamW
    precision: str = "fp32"
    accumulate: int = 1
    step: Callable[[Any, Any], torch.Tensor] | None = None
    train_step: Callable[..., Any] | None = None
    inference: bool = False
    generate: int | None = None
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def limit(self) -> float:
        return 0.01 if self.family in {"mlp", "transformer"} else 0.03


def spec(*shape: int, dtype: str = "float32", fill: int = 1) -> TensorSpec:
    return TensorSpec(shape, dtype, fill)


def labelled(*shape: int) -> tuple[TensorSpec, TensorSpec]:
    """A float input and a class for each row."""
    return spec(*shape), spec(shape[0], dtype="int64")


def tokens(batch: int, length: int, *, labels: bool = True) -> dict[str, TensorSpec]:
    ids = spec(batch, length, dtype="int64")
    return {"input_ids": ids, "labels": ids} if labels else {"input_ids": ids}
