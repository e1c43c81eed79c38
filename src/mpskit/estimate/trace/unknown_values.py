"""What is assumed where a step reads a value that nobody has computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from mpskit.errors import EstimateError
from mpskit.estimate.trace.storage_log import Where

__all__ = ["CHOOSERS", "Reads", "spread"]

# Operators whose integer output picks among things: its values decide which expert or which row is
# used, so they are spread evenly instead of left unknown.
CHOOSERS = frozenset(
    {"topk", "argmax", "argmin", "argsort", "sort", "max", "min", "multinomial", "kthvalue"}
    | {"mode", "median"}
)

# A loop that ends when a number is small enough never ends on an assumed number.
_MOST_READS = 2_000
_WHAT_TO_DO = (
    "its result depends on numbers that an estimate does not compute. Pass real tensors where the "
    "values come from the batch (or TensorSpec(..., fill=n)), or leave this out in step= or "
    "train_step="
)


@dataclass
class Reads:
    """Answers reads of unknown values, and remembers that it did."""

    where: Where
    notes: dict[str, None] = field(default_factory=dict)
    count: int = 0

    def scalar(self, name: str, tensor: torch.Tensor) -> bool | float:
        """Return the assumed value of a scalar: 1.0 for a float, which is mostly a logged loss.

        Raises:
            EstimateError: the value is a truth value or an integer, so control flow or a shape
                rests on it; or too many values are read.
        """
        self.count += 1
        if tensor.dtype.is_floating_point and self.count <= _MOST_READS:
            self.notes[f"a number read at {self._place(name)} was taken for 1.0"] = None
            return 1.0
        raise self.refusal(name, tensor)

    def refusal(self, name: str, given: Any = None) -> EstimateError:
        """Return the error for an operator whose result cannot be known."""
        return EstimateError(f"cannot estimate {self._place(name)}: {_WHAT_TO_DO}", given=given)

    def unsupported(self, name: str, what: str, given: Any = None) -> EstimateError:
        """Return the error for something that the target or the tracer does not have."""
        return EstimateError(f"cannot estimate {self._place(name)}: {what}", given=given)

    def _place(self, name: str) -> str:
        return f"{name} in {self.where.path() or 'the step itself'}"


def spread(shape: tuple[int, ...], source: torch.Size, dim: int) -> torch.Tensor:
    """Return indices of ``shape`` into dimension ``dim`` of ``source``, evenly spread.

    Neighbours along ``dim`` differ, so that the k experts of a token are k different ones and a
    sort is a permutation.
    """
    size = max(source[dim], 1) if source else 1
    if len(shape) != len(source):
        return (torch.arange(math.prod(shape)) % size).reshape(shape)
    along = shape[dim] if shape else 1
    rows = [1 if axis == dim % len(shape) else n for axis, n in enumerate(shape)]
    start = torch.arange(math.prod(rows)).reshape(rows) * along
    steps = [along if axis == dim % len(shape) else 1 for axis in range(len(shape))]
    return (start + torch.arange(along).reshape(steps)) % size
