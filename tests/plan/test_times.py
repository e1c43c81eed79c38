"""Times of a made-up model, and whether they are worth a rented card."""

from __future__ import annotations

import pytest
from tests.plan.made_up import GIB, found, job

from mpskit import MpskitError, estimate_time
from mpskit.errors import EstimateError
from mpskit.plan.defaults import defaults
from mpskit.plan.places import find_place
from mpskit.plan.result import CloudCard
from mpskit.plan.settings import Setting
from mpskit.plan.times import cloud_cards, epoch_time, loader_of, stay_local, step_time
from mpskit.speed.step_time import GUIDE_CARDS, StepTime, TimeRange

MAC = find_place("m1-16gb")
SETTING = Setting(rows=2, accumulate=4)
HOUR = 3600.0


def lasting(seconds: float) -> StepTime:
    """Return the time of a step, in place of a published one."""
    time = TimeRange(low=seconds / 2, middle=seconds, high=seconds * 2)
    return StepTime.model_construct(device="mps", chip="M1", step=time)


def refused(_: Setting) -> None:
    raise EstimateError("cannot be counted", given=None)


def test_a_step_is_timed_where_it_fits_and_can_be_counted() -> None:
    model = job()
    expected = estimate_time(model.count(SETTING), "m1-16gb", device="mps")
    assert expected is not None
    assert step_time(model, found(SETTING, GIB, 2 * GIB), MAC) == expected
    assert step_time(model, found(SETTING, 3 * GIB, 2 * GIB), MAC) is None
    assert step_time(job(count=refused), found(SETTING, GIB, 2 * GIB), MAC) is None


def test_an_epoch_is_as_many_steps_as_its_rows_make() -> None:
    epoch = epoch_time(lasting(3.0), SETTING, 80)
    assert epoch is not None
    assert (epoch.low, epoch.middle, epoch.high) == (15, 30, 60)
    assert epoch_time(None, SETTING, 80) is None
    assert epoch_time(lasting(3.0), SETTING, None) is None


@pytest.mark.parametrize(("machine", "said"), [("m1-16gb", False), ("T4", True), ("A100", True)])
def test_the_loader(machine: str, said: bool) -> None:
    place = find_place(machine)
    arguments, note = loader_of(place, 4)
    assert arguments["batch_size"] == 4
    assert arguments["pin_memory"] is (place.device == "cuda")
    assert bool(note) is said
    assert ("num_workers" in arguments) is not said


@pytest.mark.parametrize("timed", [True, False])
def test_cards_with_and_without_times(timed: bool) -> None:
    elsewhere = job(lambda _: 13 * GIB)
    model = job(on=lambda device: elsewhere if device == "cuda" else pytest.fail(device))
    cards = cloud_cards(model, found(SETTING, GIB, GIB), timed=timed)
    assert [card.card for card in cards] == list(GUIDE_CARDS)
    assert cards[0].answer == "tight"
    by_name = {card.card: card for card in cards}
    assert (by_name["A100"].answer, by_name["RTX 3060"].answer) == ("fits", "does-not-fit")
    assert by_name["A100"].needed_bytes == 13 * GIB
    assert (by_name["A100"].step is not None) is timed
    assert by_name["RTX 3060"].step is None


def test_what_a_card_cannot_do_is_compared_with_none() -> None:
    model = job(on=lambda _: job(lambda _: None))
    assert cloud_cards(model, found(SETTING, GIB, GIB), timed=False) == ()
    model = job(on=lambda _: job(count=refused))
    assert cloud_cards(model, found(SETTING, GIB, GIB), timed=True) == ()
    assert issubclass(EstimateError, MpskitError)


def card(answer: str, seconds: float | None = None) -> CloudCard:
    step = None if seconds is None else lasting(seconds)
    return CloudCard.model_construct(card="T4", answer=answer, needed_bytes=1, step=step)


FASTER, HOURS = defaults("cloud")["faster"], defaults("cloud")["hours"]


@pytest.mark.parametrize(
    ("answer", "step", "hours", "cards", "stays"),
    [
        # What does not fit goes where it does, if it does anywhere.
        ("does-not-fit", None, None, [card("fits")], False),
        ("does-not-fit", None, None, [card("tight")], False),
        ("does-not-fit", None, None, [card("does-not-fit")], True),
        ("does-not-fit", None, None, [], True),
        # A run that is short, or of which nothing is known, stays.
        ("fits", None, None, [card("fits", 0.001)], True),
        ("fits", 10.0, None, [card("fits", 0.001)], True),
        ("fits", None, 99, [card("fits", 0.001)], True),
        ("tight", 10.0, HOURS, [card("fits", 0.001)], True),
        # A longer one goes to a card that is much faster, and that it fits on.
        ("fits", 10.0, HOURS + 0.1, [card("fits", 10.0 / FASTER)], False),
        ("fits", 10.0, HOURS + 0.1, [card("fits", 10.1 / FASTER)], True),
        ("fits", 10.0, HOURS + 0.1, [card("does-not-fit", 0.001), card("fits")], True),
        ("fits", 10.0, HOURS + 0.1, [card("fits", 99.0), card("tight", 0.001)], False),
    ],
)
def test_when_to_stay(
    answer: str, step: float | None, hours: float | None, cards: list[CloudCard], stays: bool
) -> None:
    run = None
    if hours is not None:
        seconds = hours * HOUR
        run = TimeRange(low=seconds, middle=seconds, high=seconds)
    here = None if step is None else lasting(step)
    assert stay_local(answer, here, run, tuple(cards)) is stays
