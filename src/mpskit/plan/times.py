"""How long a plan takes, here and on the cards that one could rent, and what loads its data."""

from __future__ import annotations

from typing import Any

from mpskit.errors import ArgumentError, EstimateError
from mpskit.plan.defaults import defaults
from mpskit.plan.jobs import Job
from mpskit.plan.places import Place
from mpskit.plan.result import CloudCard
from mpskit.plan.search import Found
from mpskit.plan.settings import Setting
from mpskit.speed.step_time import GUIDE_CARDS, StepTime, TimeRange, estimate_time
from mpskit.training.loader import dataloader_kwargs

__all__ = ["cloud_cards", "epoch_time", "loader_of", "stay_local", "step_time"]


def loader_of(place: Place, rows: int) -> tuple[dict[str, Any], str]:
    """Return the arguments for ``DataLoader``, and a note where nothing tells the workers."""
    try:
        return dataloader_kwargs(place.device, batch_size=rows, machine=place.machine), ""
    except ArgumentError:  # named by its card: nothing is known of the CPUs beside it
        known = {"batch_size": rows, "pin_memory": place.device == "cuda"}
        return known, "choose num_workers on that machine: dataloader_kwargs() does"


def step_time(job: Job, taken: Found, place: Place) -> StepTime | None:
    """Return the seconds of one step.

    None where no published figure supports any, and for a step that does not fit: none is known of
    how long swapping takes.
    """
    if not taken.verdict:
        return None
    try:
        counts = job.count(taken.setting)
    except EstimateError:  # the step can be estimated, and not counted
        return None
    return estimate_time(counts, place.machine, device=place.device)


def epoch_time(step: StepTime | None, setting: Setting, samples: int | None) -> TimeRange | None:
    """Return the seconds of a pass over the data."""
    if step is None or samples is None:
        return None
    return step.epoch_seconds(samples, setting.rows * setting.accumulate)


def cloud_cards(job: Job, taken: Found, *, timed: bool) -> tuple[CloudCard, ...]:
    """Return the same job on each card that the guides compare with.

    Args:
        job: the model.
        taken: the setting.
        timed: whether to count the step there for its time, which takes as long as three estimates.
    """
    elsewhere = job.on("cuda")
    try:
        estimate = elsewhere.estimates(taken.setting)
        counts = elsewhere.count(taken.setting) if timed else None
    except EstimateError:  # such as a step that needs what the device lacks
        return ()
    cards = []
    for card in GUIDE_CARDS:
        verdict = estimate.fits(machine=card)
        cards.append(
            CloudCard(
                card=card,
                answer=verdict.answer,
                needed_bytes=verdict.needed_bytes,
                step=estimate_time(counts, card) if verdict and counts is not None else None,
            )
        )
    return tuple(cards)


def stay_local(
    answer: str, step: StepTime | None, run: TimeRange | None, cards: tuple[CloudCard, ...]
) -> bool:
    """Return whether to train here: it fits, and takes no day that a card would shorten much.

    Args:
        answer: whether it fits here.
        step: seconds of a step here, if known.
        run: seconds of the whole run here, if known.
        cards: the same job elsewhere.
    """
    possible = [card for card in cards if card.answer != "does-not-fit"]
    if answer == "does-not-fit":
        return not possible
    rule = defaults("cloud")
    if step is None or run is None or run.middle <= rule["hours"] * 3600:
        return True
    times = [card.step.step.middle for card in possible if card.step is not None]
    return not any(time * rule["faster"] <= step.step.middle for time in times)
