"""CPU or MPS for a workload: memory first, then what is known, then what is measured, until sure.

1. What MPS has no dtype for, or what its memory cannot hold and the CPU's can, goes to the CPU: a
   step that overflowed the GPU's share ran 2 to 14 times slower than on the CPU (``docs/device.md``
   has the sources).
2. Times that this machine took for the same workload before.
3. The prediction from counts, if it is sure.
4. A step on the CPU, timed, if that was asked for; then the prediction from it.
5. Steps on both, if that was asked for.

The first three run nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mpskit._base.arguments import shown, wrong_type
from mpskit._base.sizes import format_bytes
from mpskit.device.codes import Basis, ReasonCode
from mpskit.device.info import Rejected
from mpskit.device.policy import Decision
from mpskit.errors import ArgumentError, EstimateError
from mpskit.estimate.result import TIGHT_SHARE
from mpskit.host import Host
from mpskit.memory.budget import usable_bytes
from mpskit.speed.evidence import find_evidence, keep_evidence
from mpskit.speed.predict import Prediction, predict_speedup
from mpskit.speed.workload import Workload
from mpskit.system.machine import replaced_readings

if TYPE_CHECKING:
    from mpskit.correctness.operators import OpUse

__all__ = [
    "Answer",
    "Asked",
    "Measure",
    "answer_by_facts",
    "asked_of",
    "operators_used",
    "weigh",
]

Measure: TypeAlias = Literal["cpu", "both"]

_CPU_STEP_SECONDS = 1.0
_BOTH_SECONDS = 1.0
_NOT_ON_MPS = frozenset({"float64", "complex128"})
_SIMULATED = "The times are this computer's: a simulated Mac has no times of its own."
_FORCE = "get_optimal_device(force_mps=True)"
_ON_CPU = "get_optimal_device(use_gpu=False)"


class Asked(NamedTuple):
    """What the caller gave as workload.

    Attributes:
        workload: the counts.
        job: model and batch, where they were given: what can be run.
        measure: what may be run.
    """

    workload: Workload
    job: tuple[Any, Any] | None
    measure: Measure | None


class Answer(NamedTuple):
    """Which of CPU and MPS, and why."""

    device: Literal["cpu", "mps"]
    basis: Basis
    code: ReasonCode
    reason: str
    sure: bool = True
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known without running anything; sizes in bytes.

    Attributes:
        chip: of the machine.
        mps_usable: memory that MPS can give to the job; None if unknown.
        cpu_usable: memory that the CPU can give.
        kept: device -> seconds that the same workload took here.
    """

    chip: Any
    mps_usable: int | None = None
    cpu_usable: int | None = None
    kept: dict[str, float] | None = None


def asked_of(given: object, measure: object) -> Asked:
    """Return the counts of what a caller gave: a ``Workload``, or a pair of model and batch.

    A model in evaluation mode is counted without gradients, and so is a frozen one.

    Raises:
        ArgumentTypeError: it is neither.
        ArgumentError: ``measure`` is unknown, or there is nothing to run for it.
        EstimateError: the model's step cannot be traced.
    """
    if measure not in (None, "cpu", "both"):
        raise ArgumentError(
            f"measure is None, 'cpu' or 'both', not {shown(measure)}", given=measure
        )
    if isinstance(given, Workload):
        if measure is not None:
            raise ArgumentError(
                f"measure={shown(measure)} needs something to run: give workload=(model, batch)",
                given=measure,
            )
        return Asked(given, None, None)
    if not isinstance(given, tuple) or len(given) != 2:
        raise wrong_type("workload", "a Workload or a pair of model and batch", given)
    from mpskit.estimate.trace.run import build_model
    from mpskit.estimate.trace.steps import is_training
    from mpskit.speed.count import count_step

    model, batch = given
    module = build_model(model).module
    counted = count_step(module, batch, training=is_training(module))
    return Asked(counted, (model, batch), measure)


def weigh(decision: Decision, asked: Asked, host: Host, torch_version: str) -> Decision:
    """Return the decision that a workload leads to; only one for MPS is in question.

    A device that was asked for by name stays; what the workload says is then advice.
    """
    if decision.device != "mps":
        return decision
    facts = _read(asked.workload, host, torch_version)
    if decision.basis is Basis.FORCED:
        found = answer_by_facts(asked.workload, facts)
        other = (_sentence(found.reason),) if found.device == "cpu" else ()
        return decision._replace(advice=(*decision.advice, *other))
    found = _answer(asked, facts, torch_version)
    return _decided(decision, found)


def operators_used(asked: Asked) -> frozenset[OpUse] | None:
    """Return how the model that was given uses which operators; None for one that was not."""
    if asked.job is None:
        return None
    from mpskit.correctness.traced_operators import operators_of

    try:
        return operators_of(*asked.job)
    except EstimateError:
        return None


def answer_by_facts(workload: Workload, facts: Facts) -> Answer:
    """Return the answer of the first step that is sure, else the prediction; nothing is run."""
    for rule in (_by_dtype, _by_memory, _by_evidence):
        found = rule(workload, facts)
        if found is not None:
            return found
    return _by_prediction(workload, facts)


def _answer(asked: Asked, facts: Facts, torch_version: str) -> Answer:
    found = answer_by_facts(asked.workload, facts)
    room = facts.cpu_usable is None or (asked.workload.peak_bytes or 0) <= facts.cpu_usable
    if found.sure or asked.job is None or asked.measure is None or not room:
        return found
    from mpskit.speed.steps import cpu_seconds

    training = bool(asked.workload.training)
    seconds = cpu_seconds(*asked.job, seconds=_CPU_STEP_SECONDS, training=training)
    found = _by_prediction(asked.workload.model_copy(update={"cpu_seconds": seconds}), facts)
    if not found.sure and asked.measure == "both":
        found = _by_both(asked.workload, asked.job, facts, torch_version)
    if replaced_readings() is not None:
        found = found._replace(advice=(*found.advice, _SIMULATED))
    return found


def _by_dtype(workload: Workload, _facts: Facts) -> Answer | None:
    if workload.dtype not in _NOT_ON_MPS:
        return None
    why = f"the workload computes in {workload.dtype}, which MPS does not have"
    return Answer("cpu", Basis.PREDICTED, ReasonCode.NO_DTYPE, why)


def _by_memory(workload: Workload, facts: Facts) -> Answer | None:
    need, usable = workload.peak_bytes, facts.mps_usable
    if need is None or usable is None or need <= usable:
        return None
    if facts.cpu_usable is None or need > facts.cpu_usable:
        return None  # it fits neither, so that memory does not choose
    why = (
        f"the workload needs {format_bytes(need)}, and MPS can give {format_bytes(usable)}; "
        f"the CPU can give {format_bytes(facts.cpu_usable)}"
    )
    return Answer("cpu", Basis.PREDICTED, ReasonCode.DOES_NOT_FIT, why)


def _by_evidence(workload: Workload, facts: Facts) -> Answer | None:
    if facts.kept is None or not {"cpu", "mps"} <= facts.kept.keys():
        return None
    return _measured(facts.kept["cpu"], facts.kept["mps"], "measured here before", workload, facts)


def _by_prediction(workload: Workload, facts: Facts) -> Answer:
    found = predict_speedup(workload, facts.chip)
    device: Literal["cpu", "mps"] = "mps" if found.mps_speedup > 1 else "cpu"
    measured = workload.cpu_seconds is not None
    basis = Basis.MEASURED if measured else Basis.PREDICTED
    advice = _short_memory(workload, facts, device)
    if not found.sure:
        more = "both" if measured else "cpu"
        what = "both devices" if measured else "a step on the CPU"
        unsure = f"This is not sure: workload=(model, batch) with measure={more!r} times {what}."
        advice = (*advice, unsure)
    return Answer(device, basis, ReasonCode.SLOWER, _predicted(found), found.sure, advice)


def _predicted(found: Prediction) -> str:
    fast, ratio = ("MPS", found.mps_speedup)
    if ratio < 1:
        fast, ratio = ("the CPU", 1 / ratio)
    rests = "a timed CPU step" if found.basis == "cpu-step" else "the step's counts"
    sure = "" if found.sure else ", which is not sure"
    return f"{fast} is predicted {ratio:.1f} times faster for this workload from {rests}{sure}"


def _measured(cpu: float, mps: float, how: str, workload: Workload, facts: Facts) -> Answer:
    device: Literal["cpu", "mps"] = "mps" if mps < cpu else "cpu"
    name, ratio = ("MPS", cpu / mps) if device == "mps" else ("the CPU", mps / cpu)
    why = f"{name} is {ratio:.1f} times faster for this workload, {how}"
    advice = _short_memory(workload, facts, device)
    return Answer(device, Basis.MEASURED, ReasonCode.SLOWER, why, advice=advice)


def _short_memory(workload: Workload, facts: Facts, device: str) -> tuple[str, ...]:
    """Say that memory is short on the device that was chosen for its speed."""
    need, usable = workload.peak_bytes, facts.mps_usable if device == "mps" else facts.cpu_usable
    if need is None or usable is None or usable - need >= usable * TIGHT_SHARE:
        return ()
    name = "MPS" if device == "mps" else "the CPU"
    has = f"the workload needs {format_bytes(need)}, and {name} can give {format_bytes(usable)}"
    return (f"Memory {'is too small' if need > usable else 'is tight'}: {has}.",)


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."


def _by_both(workload: Workload, job: tuple[Any, Any], facts: Facts, torch_version: str) -> Answer:
    from mpskit.speed.timing import time_in_turn

    steps = {device: _step(workload, job, device) for device in ("cpu", "mps")}
    seconds = {d: t.median for d, t in time_in_turn(steps, seconds=_BOTH_SECONDS).items()}
    keep_evidence(workload, seconds, torch_version)
    return _measured(seconds["cpu"], seconds["mps"], "measured now", workload, facts)


def _step(workload: Workload, job: tuple[Any, Any], device: str) -> Callable[[], None]:
    from mpskit.speed.steps import step_on

    return step_on(device, *job, training=bool(workload.training))


def _read(workload: Workload, host: Host, torch_version: str) -> Facts:
    kept = find_evidence(workload, torch_version)
    needs_memory = workload.peak_bytes is not None
    return Facts(
        chip=host.chip,
        mps_usable=usable_bytes("mps", live=False) if needs_memory else None,
        cpu_usable=usable_bytes("cpu", live=False) if needs_memory else None,
        kept=kept.seconds if kept is not None else None,
    )


def _decided(decision: Decision, found: Answer) -> Decision:
    """Return the decision with the device, the reason and the advice of an answer."""
    other, fix = ("mps", _FORCE) if found.device == "cpu" else ("cpu", _ON_CPU)
    how = "measured" if found.basis is Basis.MEASURED else "predicted"
    slower = f"{how} to be slower for this workload"
    why = slower if found.code is ReasonCode.SLOWER else found.reason
    loser = Rejected(device=other, code=found.code, reason=why, fix=fix)
    rest = (r for r in decision.rejected if r.device not in ("cpu", "mps"))
    return decision._replace(
        device=found.device,
        reason=found.reason,
        basis=found.basis,
        rejected=(loser, *rest),
        advice=found.advice,
    )
