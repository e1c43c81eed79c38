"""Why a step is slow on its device: each cause with its share of the time, its line and its fix.

The step runs a few times: warmed up, watched once, timed, and timed again without autocast or
without deterministic algorithms where one of them is on. On a simulated Mac its time is predicted
from the counts, since a simulation computes on this computer's CPU.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mpskit._base.arguments import check_seconds, wrong_type
from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.backends.memory import as_device, backend
from mpskit.backends.versions import torch_version
from mpskit.device import get_optimal_device
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.patches import Patches
from mpskit.errors import DeviceUnavailableError
from mpskit.host import Host, detect_host
from mpskit.host.power import PowerState, power_state
from mpskit.speed.count import workload_of
from mpskit.speed.predict import Prediction, launch_seconds, predict_speedup, wait_seconds
from mpskit.speed.timing import time_step
from mpskit.speed.watch import Wait, Watched, watch
from mpskit.system.machine import replaced_readings

__all__ = ["Cause", "CauseKind", "Diagnosis", "Observation", "causes_of", "diagnose"]

# A cause below this share of the step's time is not worth a line.
_LEAST_SHARE = 0.02
# Waiting for batches becomes the step's problem from this share on.
_STARVED = 0.15
# The driver holds this many times what tensors do, or memory grew by this much over the steps.
_FAR_ABOVE, _GROWN = 2.0, 1.2
_STEPS = 6
_SECONDS = 1.0
_SWAPPED = 0.05


class CauseKind(StrEnum):
    """What makes a step slow."""

    LAUNCHES = "too-little-work-per-launch"
    FALLBACK = "cpu-fallback"
    WAITS = "host-waits"
    LOADER = "loader"
    PRESSURE = "memory-pressure"
    GROWTH = "memory-growth"
    AUTOCAST = "autocast"
    DETERMINISTIC = "deterministic-algorithms"
    POWER = "power"


class Cause(Value):
    """One cause.

    Attributes:
        kind: for programs.
        text: what happens.
        fix: what to do.
        share: of the step's time, 0 to 1; None where it cannot be told.
        place: ``file:line`` of the user's code; None where there is none.
        count: how often a step; None where that means nothing.
    """

    kind: CauseKind
    text: str
    fix: str
    share: float | None = None
    place: str | None = None
    count: int | None = None

    def __str__(self) -> str:
        share = "" if self.share is None else f" ({self.share:.0%} of the step)"
        place = "" if self.place is None else f"{self.place}: "
        return f"{place}{self.text}{share}. {self.fix}"


class Diagnosis(Value):
    """Why a step is slow.

    Attributes:
        device: where it ran.
        step_seconds: of one step.
        basis: ``measured``, or ``predicted`` on a simulated Mac.
        launches: operators that compute, a step.
        causes: the largest share first, those without one last.
        notes: what a person should know.
    """

    device: str
    step_seconds: float
    basis: str
    launches: int
    causes: tuple[Cause, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = (
            f"{self.step_seconds * 1e3:.3g} ms a step on {self.device} ({self.basis}), "
            f"{self.launches} launches"
        )
        causes = [f"- {cause}" for cause in self.causes] or ["no cause of slowness was found"]
        return "\n".join([head, *causes, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Observation:
    """What was seen of a step; the causes follow from it alone.

    Attributes:
        device: its type, ``mps``.
        seconds: of a step.
        watched: what happened in one.
        prediction: of its speed on MPS; None elsewhere.
        without_autocast: seconds of the step with autocast off; None if it is not on.
        without_determinism: seconds without deterministic algorithms; None if they are not on.
        live_bytes: what tensors held after each step; empty where it cannot be told.
        held_bytes: what the driver held after each step, likewise.
        shapes: how many different sets of shapes the steps had.
        usable_bytes: what the device can give; None if unknown.
        swap_share: of the machine's RAM that is swapped out.
        power: the machine's power supply.
    """

    device: str
    seconds: float
    watched: Watched
    prediction: Prediction | None = None
    without_autocast: float | None = None
    without_determinism: float | None = None
    live_bytes: Sequence[int] = ()
    held_bytes: Sequence[int] = ()
    shapes: int = 1
    usable_bytes: int | None = None
    swap_share: float = 0.0
    power: PowerState = field(default_factory=PowerState)


def diagnose(
    make_step: Callable[[str], Callable[[], Any]],
    device: str | None = None,
    *,
    seconds: float = _SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Run a step a few times and say what makes it slow.

    Args:
        make_step: called with the device's name; returns the step there, without arguments. What
            belongs to a step, as fetching its batch, belongs into it.
        device: None takes the one that :func:`mpskit.get_optimal_device` chooses.
        seconds: about how long it is timed.
        progress: is told what happens next.

    Raises:
        ArgumentTypeError: ``make_step`` cannot be called, or makes nothing that can be.
        ArgumentError: ``seconds`` is not above 0.
        DeviceUnavailableError: the device is not on this machine.
        Whatever a step raises.
    """
    check_seconds("seconds", seconds)
    name = str(get_optimal_device().device if device is None else as_device(device))
    step = made_step(make_step, name)
    seen = observe(step, name, seconds=seconds, progress=progress)
    simulated = replaced_readings() is not None
    predicted = simulated and seen.prediction is not None
    return Diagnosis(
        device=name,
        step_seconds=seen.seconds,
        basis="predicted" if predicted else "measured",
        launches=seen.watched.counts.launches,
        causes=tuple(causes_of(seen)),
        notes=(_PREDICTED if predicted else _SIMULATED,) if simulated else (),
    )


_PREDICTED = "the machine is simulated: shares of time are predicted, not measured"
_SIMULATED = "the machine is simulated: the times are this computer's"


def made_step(make_step: Callable[[str], Callable[[], Any]], device: str) -> Callable[[], Any]:
    """Return the step that is made for a device.

    Raises:
        ArgumentTypeError: ``make_step`` cannot be called, or makes nothing that can be.
        DeviceUnavailableError: the device is not on this machine.
    """
    import torch

    if isinstance(make_step, torch.nn.Module) or not callable(make_step):
        raise wrong_type(
            "make_step",
            "a function of a device's name that returns a step (a function without arguments)",
            make_step,
        )
    if not backend(device).is_available():
        raise DeviceUnavailableError(
            f"this machine has no {device}: `mpskit doctor` says why", given=device
        )
    step = make_step(device)
    if not callable(step):
        raise wrong_type("what make_step returns", "a step without arguments", step)
    return step


def observe(
    step: Callable[[], Any], device: str, *, seconds: float, progress: Callable[[str], None]
) -> Observation:
    """Run a step a few times and return what was seen."""
    host, kind = detect_host(), device.split(":")[0]
    progress("warming up")
    step()
    progress("watching a step")
    lacks = _missing(host, kind)
    first = watch(step, device, missing=lacks)
    live, held, shapes = _memory_over_steps(step, device, lacks)
    time_of = functools.partial(_seconds, device=device, host=host, seconds=seconds)
    progress("timing")
    whole = time_of(step, first)
    from mpskit.memory.budget import usable_bytes
    from mpskit.system.memory import system_memory

    ram = system_memory()
    return Observation(
        device=kind,
        seconds=whole,
        watched=first,
        prediction=_prediction(first.counts, host) if kind == "mps" else None,
        without_autocast=_without_autocast(step, device, lacks, time_of)
        if first.autocast
        else None,
        without_determinism=_without_determinism(step, first, time_of),
        live_bytes=live,
        held_bytes=held,
        shapes=shapes,
        usable_bytes=usable_bytes(device) if kind != "cpu" else None,
        swap_share=(ram.swap_used or 0) / max(host.memory_total_bytes or 1, 1),
        power=power_state(),
    )


def causes_of(seen: Observation) -> list[Cause]:
    """Return the causes that an observation shows, the largest share first."""
    rules = (
        _launches,
        _fallbacks,
        _waits,
        _loader,
        _autocast,
        _deterministic,
        _growth,
        _pressure,
        _power,
    )
    found = [cause for rule in rules for cause in rule(seen)]
    return sorted(found, key=lambda cause: 1.0 if cause.share is None else -cause.share)


def _launches(seen: Observation) -> Iterator[Cause]:
    predicted = seen.prediction
    if predicted is None or predicted.bound != "launches" or predicted.mps_speedup >= 1:
        return
    share = min(1.0, launch_seconds(seen.watched.counts.launches) / seen.seconds)
    if share >= _LEAST_SHARE:
        count = seen.watched.counts.launches
        yield Cause(
            kind=CauseKind.LAUNCHES,
            text=f"{count} launches with too little work in each: starting them takes the time",
            fix="Use larger batches, fuse small operators, or stay on the CPU: "
            f"{_ratio(predicted)}",
            share=share,
            count=count,
        )


def _ratio(predicted: Prediction) -> str:
    return f"it is predicted {1 / predicted.mps_speedup:.1f} times faster there."


def _fallbacks(seen: Observation) -> Iterator[Cause]:
    for (name, place), count in seen.watched.fallbacks.items():
        yield Cause(
            kind=CauseKind.FALLBACK,
            text=f"{name} has no kernel on {seen.device.upper()} and runs on the CPU: its operands "
            "are copied there and back, and the GPU waits",
            fix="Replace the operator, or move this part of the model to the CPU as a whole.",
            share=_waiting(seen, 2 * count),
            place=place or None,
            count=count,
        )


_REMEDY = {
    Wait.VALUE: "Keep it a tensor (loss.detach()) and read it once in many steps.",
    Wait.COPY: "Copy once in many steps, or after the loop.",
    Wait.SHAPE: "Use torch.where, or multiply by the mask, so that the shape is known.",
    Wait.PRINT: "Print once in many steps.",
    Wait.CACHE: "Take it out of the loop: mpskit.CacheKeeper empties it when that is worth it.",
}


def _waits(seen: Observation) -> Iterator[Cause]:
    for (wait, place), count in seen.watched.waits.items():
        share = _waiting(seen, count)
        if share >= _LEAST_SHARE or wait is Wait.CACHE:
            times = "once a step" if count == 1 else f"{count} times a step"
            yield Cause(
                kind=CauseKind.WAITS,
                text=f"{wait.value}, {times}: the host waits until the device has done its work",
                fix=_REMEDY[wait],
                share=share,
                place=place or None,
                count=count,
            )


def _waiting(seen: Observation, count: int) -> float:
    return min(1.0, count * wait_seconds() / seen.seconds)


def _loader(seen: Observation) -> Iterator[Cause]:
    waited = seen.watched.loader_seconds
    share = waited / max(seen.seconds, waited)
    if share >= _STARVED:
        yield Cause(
            kind=CauseKind.LOADER,
            text=f"the step waits {waited * 1e3:.3g} ms for the DataLoader's next batch",
            fix="mpskit.tune_dataloader(dataset, batch_size) measures what would be faster.",
            share=share,
        )


def _autocast(seen: Observation) -> Iterator[Cause]:
    without = seen.without_autocast
    if without is not None and without < seen.seconds:
        yield Cause(
            kind=CauseKind.AUTOCAST,
            text=f"autocast adds {seen.watched.casts} casts a step and saves less than they cost",
            fix="Train without autocast, or with the whole model in half precision.",
            share=1 - without / seen.seconds,
            count=seen.watched.casts,
        )


def _deterministic(seen: Observation) -> Iterator[Cause]:
    without = seen.without_determinism
    if without is not None:
        share = 1 - without / seen.seconds
        yield Cause(
            kind=CauseKind.DETERMINISTIC,
            text="deterministic algorithms are on, which are slower (up to 4 times on MPS)",
            fix="torch.use_deterministic_algorithms(False), if runs need not repeat exactly.",
            share=share if share >= _LEAST_SHARE else None,
        )


def _growth(seen: Observation) -> Iterator[Cause]:
    held, live = seen.held_bytes, seen.live_bytes
    if len(held) < 3:
        return
    if held[-1] > _GROWN * held[0] and seen.shapes > 2:
        grown = f"{format_bytes(held[0])} to {format_bytes(held[-1])}"
        yield Cause(
            kind=CauseKind.GROWTH,
            text=f"the driver's memory grew from {grown} in {len(held)} steps of {seen.shapes} "
            "different shapes: buffers of one size do not serve another",
            fix="Pad batches to one length, or to a few (bucket by length).",
        )
    elif all(after > before for before, after in itertools.pairwise(live)):
        grown = format_bytes((live[-1] - live[0]) // (len(live) - 1))
        yield Cause(
            kind=CauseKind.GROWTH,
            text=f"tensors hold {grown} more after every step: something keeps them alive",
            fix="Keep numbers, not tensors with a graph: losses.append(loss.detach()).",
        )


def _pressure(seen: Observation) -> Iterator[Cause]:
    held = max(seen.held_bytes, default=0)
    live = max(seen.live_bytes, default=0)
    full = seen.usable_bytes is not None and held > seen.usable_bytes
    if full and held > _FAR_ABOVE * live:
        yield Cause(
            kind=CauseKind.PRESSURE,
            text=f"the driver holds {format_bytes(held)} for {format_bytes(live)} of tensors",
            fix="mpskit.CacheKeeper gives it back now and then; mpskit.limit_memory caps it.",
        )
    elif full or seen.swap_share > _SWAPPED:
        yield Cause(
            kind=CauseKind.PRESSURE,
            text="the machine's memory is full and it swaps"
            if seen.swap_share > _SWAPPED
            else f"the driver holds {format_bytes(held)}, more than the machine can give",
            fix="Use a smaller batch (mpskit.run_with_batch_size), or close other programs.",
        )


def _power(seen: Observation) -> Iterator[Cause]:
    if seen.power.low_power_mode or seen.power.on_battery:
        text, _, fix = seen.power.concerns[0].partition("; ")
        yield Cause(kind=CauseKind.POWER, text=text, fix=f"{fix[0].upper()}{fix[1:]}")


def _missing(host: Host, kind: str) -> Callable[[Any], bool]:
    """Return what tells whether MPS lacks an operator."""
    if kind != "mps":
        return lambda _: False
    from mpskit.simulation.coverage import Coverage, Status

    known = Coverage(str(torch_version()), host.os_version or "")
    return lambda func: known.status(func) is Status.MISSING


def _memory_over_steps(
    step: Callable[[], Any], device: str, lacks: Callable[[Any], bool]
) -> tuple[list[int], list[int], int]:
    asked = backend(device)
    live: list[int] = []
    held: list[int] = []
    shapes: set[int] = set()
    for _ in range(_STEPS):
        shapes.add(watch(step, device, missing=lacks).shapes)
        live.append(asked.allocated_bytes() or 0)
        held.append(asked.reserved_bytes() or 0)
    known = device.split(":")[0] != "cpu"
    return (live, held, len(shapes)) if known else ([], [], len(shapes))


def _seconds(
    step: Callable[[], Any], watched: Watched, *, device: str, host: Host, seconds: float
) -> float:
    """Return the seconds of a step: measured, or predicted where the device is simulated."""
    if replaced_readings() is None or not device.startswith("mps"):
        return time_step(step, device, seconds=seconds).median
    waits = sum(watched.waits.values()) + 2 * sum(watched.fallbacks.values())
    return _prediction(watched.counts, host).mps_seconds + waits * wait_seconds()


def _prediction(counts: OpCounts, host: Host) -> Prediction:
    return predict_speedup(workload_of(counts, recurrent=False, training=True), host.chip)


def _without_autocast(
    step: Callable[[], Any],
    device: str,
    lacks: Callable[[Any], bool],
    time_of: Callable[[Callable[[], Any], Watched], float],
) -> float:
    import torch

    def run(patches: Patches) -> float:
        patches.bind(torch.autocast, "__enter__", lambda _: _entered)
        patches.bind(torch.autocast, "__exit__", lambda _: _left)
        return time_of(step, watch(step, device, missing=lacks))

    return Patches.around(run)


def _entered(region: Any) -> Any:
    return region


def _left(_region: Any, *_error: Any) -> bool:
    return False


def _without_determinism(
    step: Callable[[], Any],
    first: Watched,
    time_of: Callable[[Callable[[], Any], Watched], float],
) -> float | None:
    import torch

    if not torch.are_deterministic_algorithms_enabled():
        return None
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(False)
        return time_of(step, first)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
