"""What else would fit: each is estimated, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mpskit.errors import MpskitError
from mpskit.estimate.result import MemoryEstimate, Verdict
from mpskit.host.machines import sold_macs
from mpskit.plan.defaults import defaults, missing_quantization
from mpskit.plan.jobs import Job, smaller_models
from mpskit.plan.places import Place
from mpskit.plan.result import Option
from mpskit.plan.search import Found
from mpskit.speed.step_time import GUIDE_CARDS

__all__ = ["options"]


def options(job: Job, place: Place, leanest: Found) -> Iterator[Option]:
    """Yield what would fit in place of a plan that does not, or only just.

    Args:
        job: the model on the machine's device.
        place: the machine.
        leanest: the way that needs least of all that were tried.
    """
    yield from _shorter(job, place, leanest)
    yield from _quantized(job, place, leanest)
    yield from _smaller(job, place, leanest)
    if place.device == "mps":
        yield from _larger_mac(leanest.estimate, place)
    if place.device != "cuda":
        yield from _card(job, leanest)


def _better(verdict: Verdict, leanest: Found) -> bool:
    """Return whether an option helps: beside a plan that is tight another tight one does not."""
    return verdict.answer == "fits" or (bool(verdict) and not leanest.verdict)


def _fitting(words: str, estimate: MemoryEstimate, usable: int, leanest: Found) -> Iterator[Option]:
    verdict = estimate.fits(usable)
    if _better(verdict, leanest):
        yield Option(words=words, needed_bytes=verdict.needed_bytes, answer=verdict.answer)


def _tried(job: Job, found: Found, words: str, usable: int, **changes: object) -> Iterator[Option]:
    try:
        estimate = job.estimates(replace(found.setting, **changes))  # type: ignore[arg-type]
    except MpskitError:  # such as a dtype that is not modelled for the family
        return
    yield from _fitting(words, estimate, usable, found)


def _shorter(job: Job, place: Place, leanest: Found) -> Iterator[Option]:
    now = leanest.setting.seq_len
    lengths: Sequence[int] = defaults("sequence")["lengths"]
    for length in lengths:
        if now is not None and length < now:
            words = f"{length} tokens in a row ({leanest.setting.words})"
            found = list(_tried(job, leanest, words, place.usable_bytes, seq_len=length))
            if found:
                yield found[0]
                return


def _quantized(job: Job, place: Place, leanest: Found) -> Iterator[Option]:
    package = missing_quantization(place.device)
    if package is None or leanest.setting.rank is None:
        return
    words = f"a 4-bit base (pip install '{package}')"
    yield from _tried(job, leanest, words, place.usable_bytes, precision="fp32", base="nf4")


def _smaller(job: Job, place: Place, leanest: Found) -> Iterator[Option]:
    if job.like is None:
        return
    for name in smaller_models(job.name, job):
        words = f"{name} instead"
        found = list(_tried(job.like(name), leanest, words, place.usable_bytes))
        if found:
            yield found[0]
            return


def _larger_mac(estimate: MemoryEstimate, place: Place) -> Iterator[Option]:
    for machine in sold_macs():
        verdict = estimate.fits(machine)
        if verdict.answer == "fits" and verdict.usable_bytes > place.usable_bytes:
            yield Option(
                words=f"the smallest Mac for it: {machine.name}, {machine.ram_gib} GiB",
                needed_bytes=verdict.needed_bytes,
                answer="fits",
                machine=machine.name,
            )
            return


def _count(cards: int) -> str:
    return "one" if cards == 1 else f"{cards} x"


def _card(job: Job, leanest: Found) -> Iterator[Option]:
    try:
        estimate = job.on("cuda").estimates(leanest.setting)
    except MpskitError:
        return
    for card in GUIDE_CARDS:
        verdict = estimate.fits(machine=card)
        if _better(verdict, leanest):
            yield Option(
                words=f"in the cloud, {_count(leanest.setting.world_size)} {card}",
                needed_bytes=verdict.needed_bytes,
                answer=verdict.answer,
                machine=card,
            )
            return
