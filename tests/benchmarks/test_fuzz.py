"""The fuzzer: what it counts, and a small run of every function that is quick."""

import random

import fuzz
import pytest

from mpskit.errors import ArgumentError

pytestmark = [
    pytest.mark.needs_torch("estimate"),
    pytest.mark.filterwarnings("ignore"),  # of what a hostile argument is warned about
]


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_arguments_are_refused_with_typed_errors(seed, monkeypatch):
    monkeypatch.setenv("MPSKIT_CACHE_DIR", "off")
    quick = {name: target for name, target in fuzz.targets().items() if target.weight == 100}
    counts = fuzz.fuzzed(quick, 1500, seed)
    assert {name: dict(count.raised) for name, count in counts.items() if count.raised} == {}
    assert all(count.returned for count in counts.values())


def test_each_outcome_is_counted(capsys):
    def call(kind):
        if isinstance(kind, type):
            raise kind("no")

    target, count = fuzz.Target(call, {"kind": (None,)}), fuzz.Count()
    for kind in (None, ArgumentError, KeyError, KeyError):
        fuzz.tried(target, {"kind": kind}, count)
    assert (count.returned, count.refused, count.raised.total()) == (1, 1, 2)
    assert "KeyError: 'no'" in capsys.readouterr().err


def test_a_call_that_takes_long_is_counted(monkeypatch):
    times = iter([0.0, 9.0, 20.0, 21.0])
    monkeypatch.setattr(fuzz.time, "process_time", lambda: next(times))
    count = fuzz.Count()
    for _ in range(2):
        fuzz.tried(fuzz.Target(lambda: None, {}), {}, count)
    assert count.slow == 1


def test_arguments_that_are_needed_are_always_drawn():
    rng = random.Random(0)
    target = fuzz.Target(print, {"needed": (1,), "other": (2,)}, ("needed",))
    drawn = [fuzz.drawn(target, rng) for _ in range(50)]
    assert all("needed" in one for one in drawn)
    assert {"other" in one for one in drawn} == {True, False}
