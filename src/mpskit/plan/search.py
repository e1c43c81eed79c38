"""Searches the ways to run a step for the first that fits: a pure function of the estimates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mpskit.errors import ArgumentError, MpskitError
from mpskit.estimate.result import MemoryEstimate, Verdict
from mpskit.plan.settings import Setting, Way

__all__ = ["Estimates", "Found", "Search"]


class Estimates:
    """Estimates of settings, each made once: another machine's plan asks for the same ones.

    Args:
        make: estimates one setting.
    """

    def __init__(self, make: Callable[[Setting], MemoryEstimate]) -> None:
        self._make = make
        self._known: dict[Setting, MemoryEstimate | MpskitError] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, setting: Setting) -> MemoryEstimate:
        """Return a setting's estimate.

        Raises:
            MpskitError: the estimator refuses the setting; the same error each time.
        """
        # From the second batch on accumulation takes next to nothing more.
        key = replace(setting, accumulate=min(setting.accumulate, 2))
        if key not in self._known:
            try:
                self._known[key] = self._make(key)
            except MpskitError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, MpskitError):
            raise known
        return known


@dataclass(frozen=True)
class Found:
    """A setting that was estimated, and whether it fits."""

    setting: Setting
    estimate: MemoryEstimate
    verdict: Verdict


@dataclass
class Search:
    """A search on one machine.

    Attributes:
        estimates: of the model's settings.
        usable: bytes that the machine gives to the job.
        sizes: rows that a batch may have, smallest first.
        effective: rows that one optimizer step sees.
        tried: the largest that fits of every way that was looked at, or its smallest.
        refused: what the estimator refused.
    """

    estimates: Estimates
    usable: int
    sizes: Sequence[int]
    effective: int
    tried: list[Found] = field(default_factory=list)
    refused: list[MpskitError] = field(default_factory=list)

    def first_that_fits(self, ways: Iterable[Way], lengths: Sequence[int | None]) -> Found | None:
        """Return the first way that fits, at the longest sequence that any fits at.

        A way that is only tight is taken where none fits at any length; None where nothing is.
        """
        ways, tight = list(ways), None
        for index, length in enumerate(lengths):
            for way in ways:
                found = self._largest(replace(way.setting, seq_len=length))
                if found is None:
                    continue
                if found.verdict.answer == "fits":
                    return found
                tight = tight or (found if found.verdict else None)
            if index == 0 and len(lengths) > 1 and not self._hopeful(lengths[-1]):
                break
        return tight

    def _hopeful(self, length: int | None) -> bool:
        """Return whether the leanest way of all fits with rows of the shortest length."""
        leanest = self.leanest()
        if leanest is None:
            return True
        found = self._largest(replace(leanest.setting, seq_len=length))
        return found is None or bool(found.verdict)

    def beside(self, ways: Iterable[Way], taken: Found) -> list[Found]:
        """Return every way with the rows and the length of the one that was taken."""
        found = []
        for way in ways:
            setting = replace(
                way.setting,
                rows=taken.setting.rows,
                accumulate=taken.setting.accumulate,
                seq_len=taken.setting.seq_len,
            )
            with contextlib.suppress(MpskitError):  # a way that the estimator refuses
                estimate = self.estimates(setting)
                found.append(Found(setting, estimate, estimate.fits(self.usable)))
        return found

    def best(self, ways: Iterable[Way], lengths: Sequence[int | None]) -> Found:
        """Return the first way that fits, or the leanest where none does.

        Raises:
            MpskitError: the estimator refuses every way; the first error.
            ArgumentError: there is no way at all.
        """
        found = self.first_that_fits(ways, lengths) or self.leanest()
        if found is not None:
            return found
        if self.refused:
            raise self.refused[0]
        raise ArgumentError("no way is left with what is fixed: leave one setting away")

    def leanest(self) -> Found | None:
        """Return what needs least of all that was tried; the allocator's heaps hide a little."""
        return min(self.tried, key=_need, default=None)

    def _largest(self, setting: Setting) -> Found | None:
        """Return the most rows that fit, or the fewest where none does; None if refused."""
        try:
            found = self._largest_of(setting)
        except MpskitError as error:
            self.refused.append(error)
            return None
        self.tried.append(found)
        return found

    def _largest_of(self, setting: Setting) -> Found:
        """Bracket the size: memory grows with the rows, by a line and the allocator's steps."""
        low, high = 0, len(self.sizes) - 1
        best = self._at(setting, low)
        if best.verdict.answer != "fits" or low == high:
            return best
        top = self._at(setting, high)
        if top.verdict.answer == "fits":
            return top
        while high - low > 1:
            middle = self._between(low, high, best, top)
            found = self._at(setting, middle)
            if found.verdict.answer == "fits":
                low, best = middle, found
            else:
                high, top = middle, found
        return best

    def _between(self, low: int, high: int, fits: Found, too_much: Found) -> int:
        """Return which size to try next, by the line through two that are known."""
        rows = self.sizes[high] - self.sizes[low]
        grown = too_much.verdict.needed_bytes - fits.verdict.needed_bytes
        each = max(grown / rows, 1.0)
        most = self.sizes[low] + (self.usable * 0.9 - fits.verdict.needed_bytes) / each
        under = [index for index in range(low + 1, high) if self.sizes[index] <= most]
        return max(under, default=low + 1)

    def _at(self, setting: Setting, index: int) -> Found:
        sized = setting.with_rows(self.sizes[index], self.effective)
        estimate = self.estimates(sized)
        return Found(sized, estimate, estimate.fits(self.usable))


def _need(found: Found) -> tuple[int, int]:
    return found.verdict.needed_bytes, found.estimate.peak_bytes
