"""Times of steps: their order, their median, and how long it takes to take them."""

from __future__ import annotations

import pytest
import torch

from mpskit import ArgumentError, ArgumentTypeError, simulate, synchronize
from mpskit.speed import timing
from mpskit.speed.timing import format_seconds, time_in_turn, time_step, timing_of


def test_the_order_is_a_b_b_a(monkeypatch):
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in ("cpu", "other")}
    monkeypatch.setattr("mpskit.speed.timing._clock", lambda _: _ticking())
    time_in_turn(steps, seconds=0.0)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["cpu", "other", "cpu", "other", "cpu"]  # warming both up, then A B B A


def _ticking():
    ticks = iter(range(10**9))
    return lambda: float(next(ticks))


@pytest.mark.parametrize(
    ("times", "median", "low", "high"),
    [
        ([1.0], 1.0, 1.0, 1.0),
        ([1.0, 3.0], 2.0, 1.0, 3.0),
        ([float(n) for n in range(101)], 50.0, 40.0, 61.0),
        ([2.0] * 50, 2.0, 2.0, 2.0),
    ],
)
def test_the_interval_of_the_median(times, median, low, high):
    found = timing_of("cpu", times, 9.0)
    assert (found.median, found.low, found.high) == (median, low, high)
    assert (found.runs, found.first) == (len(times), 9.0)


@pytest.fixture
def slow(monkeypatch):
    """Steps of so many seconds each, on a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def of(seconds):
        runs = []

        def step():
            runs.append(seconds)
            now[0] += seconds

        return step, runs

    return of


@pytest.mark.parametrize(("each", "runs"), [(60.0, 3), (1.0, 3), (0.5, 4), (0.1, 12)])
def test_a_long_step_is_run_as_often_as_its_time_allows(slow, each, runs):
    step, seen = slow(each)
    found = time_step(step, "cpu", seconds=1.0)
    assert found.median == pytest.approx(each)
    assert len(seen) == runs
    assert found.runs == runs - (1 if each >= 1.0 else 2)  # the warm-up is not counted


def test_a_short_step_is_timed_in_blocks():
    found = time_step(lambda: None, "cpu", seconds=0.01)
    assert found.runs >= 4
    assert 0 < found.low <= found.median <= found.high


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90.0, "90 s"), (1.0, "1 s"), (0.0015, "1.5 ms"), (2e-6, "2 us"), (3e-10, "0.3 ns")],
)
def test_a_time_in_its_unit(seconds, text):
    assert format_seconds(seconds) == text


def test_synchronize():
    synchronize()
    synchronize("cpu")
    with simulate("m1-8gb"):
        synchronize("mps")
        synchronize(torch.device("mps"))
    with pytest.raises(ArgumentTypeError):
        synchronize(0)
    with pytest.raises(ArgumentError):
        synchronize("gpu")
