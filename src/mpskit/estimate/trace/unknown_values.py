"""What is assumed where a step reads a value that nobody has computed."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from mpskit.errors import EstimateError
from mpskit.estimate.trace.control_flow import (
    answer_without_raise,
    frames_from,
    reading_frame,
    user_line,
)
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
    "its result depends on numbers that an estimate does not compute. Where they come from the "
    "batch, pass real tensors (or TensorSpec(..., fill=n); =n on the command line); otherwise give "
    "a step that leaves this out (step= or train_step=; --step on the command line)"
)


@dataclass
class Reads:
    """Answers reads of unknown values, and remembers that it did.

    Attributes:
        values_matter: False while a model is built: what its weights are changes no size, so a
            loop that draws them until they please ends at once.
    """

    where: Where
    values_matter: bool = True
    notes: dict[str, None] = field(default_factory=dict)
    count: int = 0

    def scalar(self, name: str, tensor: torch.Tensor) -> bool | float:
        """Return the assumed value of a scalar: 1.0 for a float, which is mostly a logged loss.

        A truth value is assumed where it only decides whether the step raises: it does not.

        Raises:
            EstimateError: control flow or a shape rests on the value; or too many are read.
        """
        self.count += 1
        if self.count > _MOST_READS:
            raise self.refusal(name, tensor)
        if tensor.dtype.is_floating_point:
            self.notes[f"a number read at {self._place(name)} was taken for 1.0"] = None
            return 1.0
        frame = reading_frame(sys._getframe()) if tensor.dtype is torch.bool else None
        answer = frame and answer_without_raise(frame, leave_loops=not self.values_matter)
        if answer is None:
            raise self.refusal(name, tensor)
        self.notes[f"the check at {self._place(name)} was taken to pass"] = None
        return answer

    def finite(self, name: str, number: bool | float) -> bool | float:
        """Return a number that follows from floats being finite, and remember that it was asked."""
        self.notes[f"the numbers checked at {self._place(name)} were taken for finite"] = None
        return number

    def refusal(self, name: str, given: Any = None) -> EstimateError:
        """Return the error for an operator whose result cannot be known."""
        return EstimateError(f"cannot estimate {self._place(name)}: {_WHAT_TO_DO}", given=given)

    def unsupported(self, name: str, what: str, given: Any = None) -> EstimateError:
        """Return the error for something that the target or the tracer does not have."""
        return EstimateError(f"cannot estimate {self._place(name)}: {what}", given=given)

    def _place(self, name: str) -> str:
        line = user_line(frames_from(sys._getframe()))
        return f"{name} in {self.where.path() or 'the step itself'}" + (
            f" ({line})" if line else ""
        )


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
