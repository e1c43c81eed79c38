"""The search, on made-up estimates: what it finds is what trying everything would find."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit.errors import ArgumentError, EstimateError, MpskitError
from mpskit.estimate.result import MemoryEstimate
from mpskit.plan.search import Estimates, Search
from mpskit.plan.settings import Setting, Way, batch_sizes, ways

WAYS = ways(Setting(rank=8), half="bf16", mixed=None, half_rate=1.0)


def need(size: int, held: int | None = None) -> MemoryEstimate:
    return MemoryEstimate(
        device="mps",
        torch_version="2.13.0",
        parameters_bytes=size,
        peak_bytes=size,
        driver_bytes=size if held is None else held,
    )


def linear(fixed: int, each: int, *, step: int = 1) -> Estimates:
    """Return estimates that grow with rows and tokens, in steps as an allocator's heaps do."""

    def make(setting: Setting) -> MemoryEstimate:
        share = (0.5 if setting.base else 1.0, 0.4 if setting.checkpointing else 1.0)
        size = fixed * share[0] + each * share[1] * setting.rows * (setting.seq_len or 1)
        return need(int(size * 1000), (int(size * 1000) // step + 1) * step)

    return Estimates(make)


def search(estimates: Estimates, usable: int, effective: int = 8) -> Search:
    return Search(estimates, usable, batch_sizes(effective), effective)


@settings(max_examples=200)
@given(
    st.integers(0, 2000),
    st.integers(1, 300),
    st.integers(1, 64_000),
    st.integers(1, 5_000_000),
    st.sampled_from([1, 6, 8, 12, 32]),
)
def test_it_finds_what_trying_everything_finds(
    fixed: int, each: int, step: int, usable: int, effective: int
) -> None:
    lengths = (4, 2, 1)
    estimates = linear(fixed, each, step=step)
    found = search(estimates, usable, effective).first_that_fits(WAYS, lengths)
    every = [
        replace(way.setting, seq_len=length).with_rows(rows, effective)
        for length in lengths
        for way in WAYS
        for rows in reversed(batch_sizes(effective))
    ]
    first = next((s for s in every if estimates(s).fits(usable).answer == "fits"), None)
    if first is not None:
        assert found is not None
        assert found.setting == first
    else:
        assert found is None or found.verdict.answer == "tight"
        tight = any(estimates(s).fits(usable) for s in every)
        assert tight == (found is not None)


def test_few_estimates_are_made() -> None:
    """Six sizes: the ends, the one that the line between them names, and its neighbour."""
    estimates = linear(1000, 100)
    search(estimates, 2_000_000, 32).first_that_fits(WAYS[:1], (1,))
    assert len(estimates) <= 4


def test_no_time_is_spent_where_even_the_leanest_is_too_large() -> None:
    estimates = linear(100_000, 100)
    assert search(estimates, 100).first_that_fits(WAYS, (4, 2, 1)) is None
    assert len(estimates) == len(WAYS) + 1


def test_an_estimate_is_made_once() -> None:
    made: list[Setting] = []

    def make(setting: Setting) -> MemoryEstimate:
        made.append(setting)
        return need(10)

    estimates = Estimates(make)
    for accumulate in (2, 4, 8):  # what a second batch adds is all that accumulation takes
        estimates(Setting(accumulate=accumulate))
    estimates(Setting())
    assert len(made) == 2


def test_a_refusal_is_remembered_and_another_way_is_taken() -> None:
    tries = 0

    def make(setting: Setting) -> MemoryEstimate:
        nonlocal tries
        tries += 1
        if setting.base is None:
            raise EstimateError("no", given=setting)
        return need(10)

    estimates = Estimates(make)
    looking = search(estimates, 1000, 1)
    found = looking.first_that_fits(WAYS, (1,))
    assert found is not None
    assert found.setting.base == "bf16"
    assert len(looking.refused) == 1
    before = tries
    with pytest.raises(EstimateError):
        estimates(replace(WAYS[0].setting, seq_len=1))
    assert tries == before


def test_where_every_way_is_refused_the_first_error_is_raised() -> None:
    def make(setting: Setting) -> MemoryEstimate:
        raise EstimateError(f"refused {setting.words}", given=setting)

    with pytest.raises(EstimateError, match=r"refused fp32$"):
        search(Estimates(make), 100).best(WAYS, (1,))


def test_no_way_at_all() -> None:
    nothing: list[Way] = []
    with pytest.raises(ArgumentError, match="leave one setting away"):
        search(linear(1, 1), 100).best(nothing, (1,))


def test_the_leanest_is_what_does_not_fit_least() -> None:
    found = search(linear(100_000, 100), 100).best(WAYS, (4, 2, 1))
    assert not found.verdict
    assert found.setting.words == "bf16 base + checkpointing"
    assert found.setting.seq_len == 1


def test_others_are_compared_at_the_same_rows_and_length() -> None:
    looking = search(linear(1000, 100), 1_300_000)
    taken = looking.best(WAYS, (2, 1))
    beside = looking.beside(WAYS, taken)
    assert {(f.setting.rows, f.setting.seq_len) for f in beside} == {
        (taken.setting.rows, taken.setting.seq_len)
    }
    assert taken.setting in [found.setting for found in beside]
    assert isinstance(looking.leanest(), type(taken))
    assert issubclass(EstimateError, MpskitError)


def test_a_length_at_which_every_way_is_refused_is_no_reason_to_stop() -> None:
    def make(setting: Setting) -> MemoryEstimate:
        if setting.seq_len == 512:
            raise EstimateError("no positions for them", given=setting)
        return need(setting.seq_len or 0)

    found = search(Estimates(make), 1000, 1).first_that_fits(WAYS, (512, 256, 128))
    assert found is not None
    assert found.setting.seq_len == 256


@pytest.mark.parametrize("lengths", [(512, 256, 128), (512, 128)])
def test_other_lengths_are_left_out_where_the_leanest_way_does_not_fit_the_shortest(
    lengths: tuple[int, ...],
) -> None:
    tried: list[int | None] = []

    def make(setting: Setting) -> MemoryEstimate:
        tried.append(setting.seq_len)
        return need(2000)

    assert search(Estimates(make), 1000, 1).first_that_fits(WAYS, lengths) is None
    assert tried == [512] * len(WAYS) + [128]
