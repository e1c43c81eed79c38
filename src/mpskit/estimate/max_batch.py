"""``max_batch_size``: the largest batch whose step fits, from a few estimates.

What a step needs grows with its rows along the highest of several straight lines: one for each
moment that can be the peak. So two sizes give the next, and once three lie on one line, it says
where the largest is; else a size that fails does. Every size returned was estimated itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mpskit._base.arguments import check_count, shown, wrong_type
from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentError, EstimateError
from mpskit.estimate.api import Model, estimate_inference_memory, estimate_training_memory
from mpskit.estimate.from_config import estimate_from_config
from mpskit.estimate.result import TIGHT_SHARE, MemoryEstimate, Verdict, usable_bytes
from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.targets import target_device
from mpskit.estimate.trace.batch import keeps_values
from mpskit.host.named import MachineLike
from mpskit.memory.budget import MemoryBudget, memory_budget

__all__ = ["MaxBatch", "batch_of", "max_batch_size"]

# The size found is at least this share of the largest that fits.
_ENOUGH = 0.95
# Three sizes lie on a line if the third is no further from it than this share of the limit.
_STRAIGHT = 0.003
# A failure by less than this share, where the need does not grow, may be the allocator's noise.
_NOISE = 0.02
# Without any growth to follow, the next size is this many times the last.
_JUMP = 8
_TRIES = 16


class MaxBatch(Value):
    """The largest batch that fits.

    Attributes:
        batch_size: its rows; 0 where no batch fits.
        estimate: what it takes; where no batch fits, what the smallest takes.
        verdict: how that compares with what is usable.
        tries: how many sizes were estimated.
        reason: why it is no larger, in a sentence.
    """

    batch_size: int
    estimate: MemoryEstimate
    verdict: Verdict
    tries: int
    reason: str

    def __str__(self) -> str:
        return f"batch size {self.batch_size} on {self.estimate.device}: {self.reason}"


def max_batch_size(
    model: Model | Mapping[str, Any] | str | Path,
    batch: Any = None,
    *,
    machine: MachineLike | None = None,
    device: str | torch.device | None = None,
    budget: MemoryBudget | MachineLike | int | None = None,
    seq_len: int | None = None,
    training: bool = True,
    tight: bool = False,
    most: int = 65_536,
    **options: Any,
) -> MaxBatch:
    """Return the largest batch whose step fits, or one at most 5% smaller.

    Some three sizes are estimated, on MPS eight to twenty, because its heaps grow in steps, or
    three to six with ``tight=True``. Where the allocator's rounding
    makes a batch need more than a larger one, which it does in budgets of some MiB, sizes beyond it
    may not be looked at.

    Args:
        model: as for :func:`estimate_training_memory`, or a config as for
            :func:`estimate_from_config` (a mapping, a path, a bundled model's name).
        batch: for a model, a batch of any size as :func:`estimate_training_memory` takes it, whose
            tensors all have the rows first; or a callable that makes one of as many rows as it is
            given.
        machine: the machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`. None is this one as it is now.
        device: its device, where that is not its best one.
        budget: what may be used instead of what the machine gives, as for
            :meth:`MemoryEstimate.fits`.
        seq_len: for a config, the tokens in each row.
        training: a training step; False for a forward pass without gradients.
        tight: whether a step counts that is ``tight`` by :meth:`MemoryEstimate.fits`: its tensors
            fit, what the allocator holds for them perhaps not. False asks for a tenth of the budget
            to be left, the allocator's heaps included, as :func:`mpskit.plan_training` does.
        most: no size above this one is tried.
        options: the estimate's: ``precision``, ``optimizer``, ``accumulate``, ``step``, ``lora``...

    Raises:
        ArgumentError: a model without a batch or a config without ``seq_len``, a batch whose rows
            cannot be told, an option that the estimate does not have, a budget of nothing, or
            nobody knows what the machine gives.
        ArgumentTypeError: an argument of the wrong type.
        UnknownMachineError: no machine has that name.
        EstimateError: the step cannot be traced; the message names operator and module.
    """
    check_count("most", most, least=1)
    for name, value in (("training", training), ("tight", tight)):
        if not isinstance(value, bool):
            raise wrong_type(name, "True or False", value)
    target = target_device(device, machine)
    estimate = _estimator(model, batch, seq_len, training, {**options, "device": target})
    usable = _usable(budget, machine, target)
    return _Search(estimate, usable, tight=tight, most=most).run()


def _usable(
    budget: MemoryBudget | MachineLike | int | None, machine: MachineLike | None, device: Any
) -> int:
    if budget is not None:
        return usable_bytes(budget)
    usable = memory_budget(device, machine=machine).usable_bytes
    if usable is None:
        raise ArgumentError(
            f"nobody knows how much of {device} is usable: give budget=", given=machine
        )
    return usable


def _estimator(
    model: Any, batch: Any, seq_len: int | None, training: bool, options: dict[str, Any]
) -> Callable[[int], MemoryEstimate]:
    """Return a function that estimates a step of so many rows."""
    if isinstance(model, str | Path | Mapping):
        if seq_len is None or batch is not None:
            raise ArgumentError("a config needs seq_len=, and no batch", given=batch)
        _check_options(estimate_from_config, options)
        return lambda rows: estimate_from_config(
            model, batch_size=rows, seq_len=seq_len, training=training, **options
        )
    if batch is None or seq_len is not None:
        raise ArgumentError("a model needs a batch; seq_len= is for a config", given=seq_len)
    run = estimate_training_memory if training else estimate_inference_memory
    _check_options(run, options)
    make = batch_of(batch)
    return lambda rows: run(model, make(rows), **options)


_OWN = ("model", "config", "batch", "batch_size", "seq_len", "training", "machine")


def _check_options(run: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(run).parameters if name not in _OWN]
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"{run.__name__} has no option {shown(name)}: one of {', '.join(known)}", given=name
            )


def batch_of(batch: Any) -> Callable[[int], Any]:
    """Return a function that makes the batch with another number of rows; a callable is one.

    Raises:
        ArgumentError: it has no tensors with rows, or their numbers differ.
    """
    if callable(batch):
        made: Callable[[int], Any] = batch
        return made
    rows: set[int] = set()

    def look(item: Any) -> Any:
        rows.update(item.shape[:1])
        return item

    map_tensors(batch, look)
    if len(rows) != 1 or 0 in rows:
        found = f"first dimensions of {sorted(rows)}" if rows else "no tensor with rows"
        raise ArgumentError(
            f"a batch whose rows can be told has tensors of one first dimension, this one has "
            f"{found}: give a callable that makes a batch of as many rows as it is given",
            given=batch,
        )
    return lambda count: map_tensors(batch, lambda item: _with_rows(item, count))


def _with_rows(item: Any, rows: int) -> Any:
    """Return a tensor or ``TensorSpec`` with so many rows; a tensor's own are repeated."""
    if not item.shape:
        return item
    shape = (rows, *item.shape[1:])
    if isinstance(item, TensorSpec):
        return TensorSpec(shape, item.dtype, item.fill)
    if not keeps_values(item.dtype, math.prod(shape)):
        return TensorSpec(shape, item.dtype)
    return item[torch.arange(rows, device=item.device) % item.shape[0]]


@dataclass
class _Search:
    """The sizes that were estimated, and what follows from them."""

    estimate: Callable[[int], MemoryEstimate]
    usable: int
    tight: bool
    most: int
    fitted: dict[int, MemoryEstimate] = field(default_factory=dict)
    failed: dict[int, MemoryEstimate] = field(default_factory=dict)
    tries: int = 0
    _turn: int = 0

    def run(self) -> MaxBatch:
        """Estimate sizes until one is known to be large enough."""
        self._first()
        while self.fitted and self.tries < _TRIES:
            rows = self._next()
            if rows is None:
                break
            self._try(rows)
        rows = max(self.fitted, default=0) if self.tight else self._roomy()
        found = self.fitted[rows] if rows else self._least()
        return MaxBatch(
            batch_size=rows,
            estimate=found,
            verdict=found.fits(self.usable),
            tries=self.tries,
            reason=self._reason(rows, found),
        )

    def _roomy(self) -> int:
        """Return the largest size whose heaps leave a tenth as well; 0 if there is none.

        They grow in steps, and a larger batch may need less of them than a smaller one, so that
        this looks from above.
        """
        rows = max(self.fitted, default=0)
        while rows:
            if rows not in self.fitted:
                self._try(rows)
            found = self.fitted.get(rows)
            if found is not None and found.fits(self.usable).answer == "fits":
                return rows
            rows = min(rows - 1, int(rows * _ENOUGH))
        return 0

    def _least(self) -> MemoryEstimate:
        known = self.fitted | self.failed
        return known[min(known)]

    def _first(self) -> None:
        """Estimate the smallest batch. Batch norm may refuse a single row in training."""
        try:
            self._try(1)
        except EstimateError as error:
            if self.most < 2:
                raise
            try:
                self._try(2)
            except EstimateError:
                raise error from error.__cause__

    def _try(self, rows: int) -> None:
        found = self.estimate(rows)
        self.tries += 1
        if found.peak_high_bytes <= self._limit:
            self.fitted[rows] = found
            self.failed = {size: one for size, one in self.failed.items() if size > rows}
        else:
            self.failed[rows] = found

    def _next(self) -> int | None:
        """Return the next size to estimate; None if the largest that fits is large enough."""
        beyond = self._beyond_noise()
        if beyond is not None:
            return beyond
        low, bound = max(self.fitted), self._bound()
        if low >= _ENOUGH * bound:
            return None
        rows = self._between(low) if self.failed else self._beyond(low)
        return min(max(int(rows), low + 1), bound)

    def _beyond_noise(self) -> int | None:
        """Return a size well above one that failed narrowly, where the need hardly grows.

        A larger buffer reused may make a size need a little more than the next ones do.
        """
        if not self.failed:
            return None
        least, top = min(self.fitted), min(self.failed)
        grows = (self._need(top) - self._need(least)) / (top - least)
        flat = self._need(top) + grows * top <= (1 + _NOISE) * self._limit
        return 2 * top if flat and 2 * top <= self.most and 2 * top not in self.failed else None

    def _bound(self) -> int:
        """Return a size above which none fits."""
        bound = min(self.failed, default=self.most + 1) - 1
        line = self._line() if self._is_straight() else None
        return bound if line is None else min(bound, max(int(line), max(self.fitted)))

    def _is_straight(self) -> bool:
        """Return whether the three largest sizes that fit lie on a line."""
        if len(self.fitted) < 3:
            return False
        small, middle, large = sorted(self.fitted)[-3:]
        low, high = self._need(small), self._need(large)
        on_line = low + (high - low) * (middle - small) / (large - small)
        return abs(self._need(middle) - on_line) < _STRAIGHT * self._limit

    def _line(self, sizes: Sequence[int] | None = None) -> float | None:
        """Return where the line through two sizes, the largest that fit, reaches the limit."""
        small, large = sorted(self.fitted)[-2:] if sizes is None else sizes
        low, high = self._need(small), self._need(large)
        if high <= low:
            return None
        return large + (self._limit - high) * (large - small) / (high - low)

    def _beyond(self, low: int) -> float:
        """Return a larger size, while none has failed."""
        if len(self.fitted) == 1:
            return self._guess(low)
        line = self._line()
        if line is None:
            return low * _JUMP
        return line if line >= low + 1 else low / _ENOUGH + 1

    def _guess(self, rows: int) -> float:
        """Return where the limit is, if all that is no model's grows with the rows."""
        found = self.fitted[rows]
        kept = (
            found.parameters_bytes
            + found.buffers_bytes
            + found.gradients_bytes
            + found.optimizer_bytes
        )
        grows = self._need(rows) - kept
        return (self._limit - kept) / grows * rows if grows > 0 else rows * _JUMP

    def _between(self, low: int) -> float:
        """Return a size between the largest that fits and the smallest that does not.

        The line through both leads to one that fits, that through two failures to where the
        growth begins; every third time the range is halved, in case the need is no such line.
        """
        tops = sorted(self.failed)[:2]
        turn = self._turn = (self._turn + 1) % 3
        if turn == 1:
            line = self._line((low, tops[0]))
        else:
            line = self._line(tops) if turn == 2 and len(tops) == 2 else None
        return (low + tops[0]) / 2 if line is None else line

    def _need(self, rows: int) -> int:
        found = self.fitted.get(rows) or self.failed[rows]
        return found.peak_high_bytes

    @property
    def _limit(self) -> float:
        return self.usable * (1 if self.tight else 1 - TIGHT_SHARE)

    def _reason(self, rows: int, found: MemoryEstimate) -> str:
        need = found.peak_high_bytes if self.tight else found.driver_bytes + found.peak_margin_bytes
        allowed = f"{format_bytes(need)} of {format_bytes(int(self._limit))} usable"
        allowed += "" if self.tight else ", a tenth kept free"
        if not rows:
            least = min(self.fitted | self.failed)
            return f"{least} row{'s' * (least > 1)} would need {allowed}"
        if rows == self.most:
            return f"needs {allowed}; no size above most={self.most} was tried"
        more = f"no size above {self._bound()} fits" if self.tight else "larger ones leave less"
        return f"needs {allowed}; {more}"
