"""Chooses the next batch size, between the largest that fitted and the smallest that failed.

An out-of-memory error comes in the middle of a step. The memory held and requested then is a lower
bound of the step's need, and mostly close to the limit, so it says little about the whole step
unless the request is of the limit's order. A size that fits shows its exact need. So the search
goes well below the first failure, measures the step there, and goes to the size that this predicts.
If no backend reports its memory, it bisects instead.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from mpskit._base.arguments import shown
from mpskit.errors import ArgumentError
from mpskit.memory.oom import OomFigures

__all__ = ["BatchSearch", "share_that_fits", "sizes_dividing"]

# A size is final if it is at least this fraction of the largest that may fit.
ENOUGH = 0.9
# The failure's figures count if they say that at most this fraction fits; nearer to 1 they only say
# that the limit was reached.
_TELLING = 0.75
_CREDIT = 0.95
# The fraction to try after a failure without figures. If a size that fits can be measured, one more
# try is enough from anywhere; if not, bisect.
_DOWN_MEASURED, _DOWN = 0.25, 0.5
# Margin below the prediction, because allocators round up.
_MARGIN = 0.97


_MOST_ROWS = 1 << 30  # no published batch comes near it


def sizes_dividing(effective: int) -> list[int]:
    """Return the sizes of a batch that divide the rows of an optimizer step, smallest first.

    Raises:
        ArgumentError: no step has so many rows.
    """
    if effective > _MOST_ROWS:
        raise ArgumentError(
            f"an effective batch of {shown(effective)} is more than a step has", given=effective
        )
    small = [size for size in range(1, math.isqrt(effective) + 1) if effective % size == 0]
    return sorted({*small, *(effective // size for size in small)})


class BatchSearch:
    """The state of one search over ascending ``sizes``; the last is tried first."""

    def __init__(self, sizes: Sequence[int], *, measured: bool) -> None:
        """Start a search; ``measured`` says that :meth:`fits` will be told bytes."""
        self._sizes = sizes
        self._down = _DOWN_MEASURED if measured else _DOWN
        # Size that fitted -> bytes it needed (None: unknown).
        self._fitted: dict[int, int | None] = {}
        self._high: int | None = None
        # The upper bound from the failures' figures, and the expected size.
        self._bound = float(sizes[-1])
        self._most: float | None = None
        self._near = False
        self._limit: int | None = None
        self._base = 0

    @property
    def low(self) -> int | None:
        """The largest size that fitted; None before one did."""
        return max(self._fitted, default=None)

    def fails(
        self, size: int, share: float | None, *, limit: int | None = None, exact: bool = False
    ) -> None:
        """Record a size that ran out of memory.

        Args:
            size: the size.
            share: the fraction of it that fits by the error's figures; None if unknown.
            limit: the bytes that the process may hold, by the error.
            exact: the share comes from a complete step, not an interrupted one.
        """
        self._high = size
        # A size that fitted before and fails now (optimizer states came since) does not fit.
        self._fitted = {one: need for one, need in self._fitted.items() if one < size}
        self._limit = limit if limit is not None else self._limit
        # The first prediction from sizes that fitted was close.
        self._near = self._most is not None and self.low is not None and not self._near
        self._most = ENOUGH / _MARGIN * size if self._near else None
        if share is not None and (exact or share <= _TELLING):
            self._bound = min(self._bound, size * share)
            self._most = self._bound * (1 if exact else _CREDIT)

    def fits(self, size: int, need: int | None = None, base: int = 0) -> None:
        """Record a size that fitted, with the bytes it needs and those held before.

        It counts as failed if it needs more than the limit, with states still to come.
        """
        if need is not None and self._limit is not None and need > self._limit:
            self.fails(size, None)
            return
        self._fitted[size] = need
        self._base, self._near = base, False
        self._most = self._predicted()

    def limited(self, limit: int) -> None:
        """Record the bytes that the process may hold from now on."""
        self._limit = limit
        if self._most is not None and not self._near:
            self._most = self._predicted()

    def forget(self) -> None:
        """Forget which sizes fitted, because their measurements were incomplete."""
        self._fitted.clear()

    def next(self) -> int | None:
        """Return the next size to try; None if :attr:`low` is final or no size is left."""
        between = self._between()
        low = self.low
        if not between or (low is not None and self._is_enough(low, between[-1])):
            return None
        if low is None:
            size = self._most if self._most is not None else (self._high or 0) * self._down
        elif self._most is not None:
            size = max(self._most * _MARGIN, low / ENOUGH)
        else:
            size = math.sqrt(low * between[-1])
        return between[max(0, bisect_right(between, size) - 1)]

    def _between(self) -> Sequence[int]:
        first = 0 if self.low is None else bisect_right(self._sizes, self.low)
        end = len(self._sizes) if self._high is None else bisect_left(self._sizes, self._high)
        return self._sizes[first:end]

    def _is_enough(self, low: int, most: int) -> bool:
        most = min(most, int(self._bound))
        if len(self._measured()) > 1 and self._most is not None:
            most = min(most, int(self._most))
        return low >= ENOUGH * most

    def _measured(self) -> list[tuple[int, int]]:
        return sorted((one, need) for one, need in self._fitted.items() if need is not None)

    def _predicted(self) -> float | None:
        """Return the largest size by a line through the last two that fitted, or base and one."""
        points = [(0, self._base), *self._measured()]
        if self._limit is None or len(points) == 1:
            return None
        ((size, need), (more, most)) = list(pairwise(points))[-1]
        slope = (most - need) / (more - size)
        return more + (self._limit - most) / slope if slope > 0 else None


def share_that_fits(figures: OomFigures, base: int, max_buffer: int | None) -> float | None:
    """Return the fraction of the batch that fits by the figures, 0 to 1; None if unknown.

    At the failure the step needed at least the bytes held plus those requested. Without ``base``,
    which was held before and does not grow with the batch (weights, optimizer states), they are a
    lower bound of what the items need; the limit without ``base`` is what they may have. If a
    single buffer is too large, only that buffer counts.
    """
    if figures.requested is None or figures.requested <= 0:
        return None
    if figures.kind == "buffer":
        there, needed = max_buffer, figures.requested
    else:
        limit, held = limit_of(figures), figures.allocated
        if limit is None or held is None:
            return None
        there, needed = limit - base, held + (figures.other or 0) - base + figures.requested
    if there is None or needed <= 0:
        return None
    return min(1.0, max(0.0, there / needed))


def limit_of(figures: OomFigures) -> int | None:
    """Return the bytes that the process may hold by the figures; None if unknown."""
    limit, held = figures.max_allowed, figures.allocated
    if limit is None or held is None or figures.free is None:
        return limit
    # Other processes may hold some of a device's own memory, which is not available then.
    return min(limit, figures.free + (figures.cached or 0) + held)
