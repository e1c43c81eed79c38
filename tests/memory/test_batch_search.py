"""The rule of the next size: a pure search, on steps whose need is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit.memory.batch_search import BatchSearch, limit_of, share_that_fits
from mpskit.memory.oom import OomFigures

GIB = 2**30
LIMIT = 9 * GIB


@dataclass
class Step:
    """A step of ``layers`` equal allocations beside ``base`` bytes, of which ``largest`` fits."""

    largest: int
    layers: int = 50
    base: int = GIB

    def item(self) -> float:
        return (LIMIT - self.base) / (self.largest + 0.5)

    def need(self, size: int) -> int:
        return int(self.base + self.item() * size)

    def error(self, size: int) -> OomFigures:
        """Return what the allocation says that first goes over the limit."""
        one = self.item() * size / self.layers
        fitted = int((LIMIT - self.base) / one)
        return OomFigures(
            backend="mps",
            kind="limit",
            allocated=int(self.base + fitted * one),
            other=0,
            max_allowed=LIMIT,
            requested=int(one) + 1,
        )


def found(step: Step, start: int, *, measured: bool = True, base: int | None = None) -> list[int]:
    """Search, and return the sizes tried with the final one last."""
    known = step.base if base is None else base
    search, size, tried = BatchSearch(range(1, start + 1), measured=measured), start, []
    while True:
        tried.append(size)
        assert len(tried) < 30
        if size > step.largest:
            figures = step.error(size)
            share = share_that_fits(figures, known, None)
            search.fails(size, share, limit=limit_of(figures))
        else:
            search.fits(size, step.need(size) if measured else None, known)
        following = search.next()
        if following is None:
            return [*tried, search.low or 0]
        size = following


# start, largest that fits, tries and result of the rule before this one (x 0.9, 0.75, 0.5 ...)
BEFORE = [
    (48, 18, 4, 13),
    (64, 40, 4, 20),
    (64, 10, 5, 7),
    (128, 18, 6, 9),
    (256, 40, 5, 29),
    (100, 10, 5, 10),
]


@pytest.mark.parametrize(("start", "largest", "tries", "result"), BEFORE)
def test_it_ends_higher_than_it_used_to_in_no_more_tries(start, largest, tries, result) -> None:
    *tried, size = found(Step(largest), start)
    assert size >= max(0.9 * largest, result)
    assert len(tried) <= tries


@settings(deadline=None)
@given(
    largest=st.integers(1, 3000),
    start=st.integers(1, 3000),
    layers=st.sampled_from([1, 3, 10, 50, 400]),
    weights=st.integers(0, 8),
    told=st.booleans(),
    measured=st.booleans(),
)
def test_it_ends_near_the_largest_that_fits(
    largest, start, layers, weights, told, measured
) -> None:
    step = Step(largest, layers, weights * GIB)
    base = step.base if told else 0
    *tried, size = found(step, start, measured=measured, base=base)
    most = min(start, largest)
    assert 0.9 * most <= size <= most or size == most
    assert len(set(tried)) == len(tried)
    # Halving and bisecting, at worst.
    assert len(tried) <= 4 + 2 * start.bit_length()


@pytest.mark.parametrize("start", [8, 16, 32, 48, 64, 100, 128, 256])
def test_five_tries_are_enough_where_memory_is_measured(start) -> None:
    for largest in range(max(1, start // 12), start):
        assert len(found(Step(largest), start)) - 1 <= 5, largest


def test_only_sizes_that_are_offered_are_tried() -> None:
    search = BatchSearch([1, 2, 4, 8, 16, 32], measured=False)
    search.fails(32, None)
    assert search.next() == 16
    search.fits(16)
    assert (search.next(), search.low) == (None, 16)


def test_one_buffer_scales_exactly() -> None:
    figures = OomFigures(backend="mps", kind="buffer", requested=16 * GIB)
    search = BatchSearch(range(1, 65), measured=True)
    search.fails(64, share_that_fits(figures, 0, 6 * GIB), exact=True)
    assert search.next() == 24


@pytest.mark.parametrize(
    ("share", "exact", "size"),
    [
        (0.5, False, 30),  # a step that broke off needs somewhat more than it said
        (0.75, False, 45),
        (0.76, False, 16),  # too near to tell anything: a quarter, as without figures
        (None, False, 16),
        (0.97, True, 62),
        (0.25, True, 16),
        (0.0, True, 1),
    ],
)
def test_the_first_size_after_a_failure(share, exact, size) -> None:
    search = BatchSearch(range(1, 65), measured=True)
    search.fails(64, share, exact=exact)
    assert search.next() == size


def test_a_size_that_fitted_and_then_fails_does_not_fit() -> None:
    search = BatchSearch(range(1, 65), measured=False)
    search.fails(64, None)
    search.fits(32)
    search.fails(32, None)
    assert search.low is None
    assert search.next() == 16


def test_nothing_fits() -> None:
    search = BatchSearch(range(4, 9), measured=False)
    for size in (8, 4):
        search.fails(size, None)
    assert (search.next(), search.low) == (None, None)


def figures(**changes) -> OomFigures:
    known = {"backend": "mps", "kind": "limit", "allocated": 8 * GIB, "other": 0}
    return OomFigures(**(known | {"max_allowed": 9 * GIB, "requested": 4 * GIB} | changes))


CARD = {"backend": "cuda", "cached": 0, "other": None}
# figures, base, largest buffer -> the part that fits
SHARES = [
    (figures(), 0, None, 9 / 12),
    # 4 GiB of weights do not grow
    (figures(), 4 * GIB, None, 5 / 8),
    # the weights alone are over the limit
    (figures(), 10 * GIB, None, 0),
    # what the driver holds for others counts as held
    (figures(other=8 * GIB), 0, None, 9 / 20),
    # a card: 24 of which 2 free, 10 torch's own, 12 someone else's
    (
        figures(max_allowed=24 * GIB, free=2 * GIB, allocated=10 * GIB, requested=6 * GIB, **CARD),
        0,
        None,
        12 / 16,
    ),
    # under a cap of 8 the card's free memory is no room
    (
        figures(max_allowed=8 * GIB, free=60 * GIB, allocated=7 * GIB, requested=3 * GIB, **CARD),
        0,
        None,
        8 / 10,
    ),
    (figures(kind="buffer", requested=16 * GIB), 0, 6 * GIB, 6 / 16),
    (figures(kind="buffer", requested=16 * GIB), 0, None, None),
    (OomFigures(), 0, None, None),
    (figures(max_allowed=None), 0, None, None),
    (figures(allocated=None), 0, None, None),
    (figures(requested=None), 0, None, None),
    (figures(requested=0), 0, None, None),
    (figures(requested=1, allocated=3 * GIB), 4 * GIB, None, None),
]


@pytest.mark.parametrize(("known", "base", "buffer", "share"), SHARES)
def test_the_part_that_fits_by_the_figures(known, base, buffer, share) -> None:
    assert share_that_fits(known, base, buffer) == (None if share is None else pytest.approx(share))


# figures -> the bytes that the process may hold
LIMITS = [
    (figures(), 9 * GIB),
    (figures(max_allowed=None, free=GIB), None),
    (figures(allocated=None, free=GIB), 9 * GIB),
    (figures(max_allowed=24 * GIB, free=2 * GIB, cached=None), 10 * GIB),
    (figures(max_allowed=24 * GIB, free=2 * GIB, cached=GIB), 11 * GIB),
    (figures(max_allowed=24 * GIB, free=0, cached=0), 8 * GIB),
    (figures(max_allowed=8 * GIB, free=60 * GIB), 8 * GIB),
]


@pytest.mark.parametrize(("known", "limit"), LIMITS)
def test_the_limit_by_the_figures(known, limit) -> None:
    assert limit_of(known) == limit


amounts = st.none() | st.integers(0, 2**60)


@settings(deadline=None)
@given(
    start=st.integers(2, 10**6),
    known=st.builds(
        OomFigures,
        kind=st.sampled_from(["limit", "buffer", "driver", None]),
        allocated=amounts,
        other=amounts,
        max_allowed=amounts,
        requested=amounts,
        free=amounts,
        cached=amounts,
    ),
    base=st.integers(0, 2**60),
    largest=amounts,
)
def test_whatever_the_figures_say_the_next_size_is_smaller(start, known, base, largest) -> None:
    search = BatchSearch(range(1, start + 1), measured=False)
    share = share_that_fits(known, base, largest)
    assert share is None or 0 <= share <= 1
    search.fails(start, share, limit=limit_of(known), exact=known.kind == "buffer")
    assert 1 <= search.next() < start


def test_a_prediction_that_failed_was_near() -> None:
    search = BatchSearch(range(1, 101), measured=True)
    search.fails(100, None, limit=1000)
    assert search.next() == 25
    search.fits(25, 400, 100)
    assert search.next() == 72
    search.fails(72, None)
    assert search.next() == 64
    search.fails(64, None)
    assert search.next() == 39  # and the second time it tells no more


def test_less_room_than_before_counts() -> None:
    search = BatchSearch(range(1, 101), measured=True)
    search.fails(100, None, limit=1000)
    search.fits(25, 250)
    assert search.next() == 97
    search.limited(500)
    assert search.next() == 48
