"""Runs the steps of an estimate on an exchanged model, and sums up what they took."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mpskit.allocator import Event, allocator_for, replay
from mpskit.dispatch.intercept import intercepting
from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.targets import Target
from mpskit.estimate.trace.batch import build_batch
from mpskit.estimate.trace.guards import guarded
from mpskit.estimate.trace.model_state import kept_random_state, swapped
from mpskit.estimate.trace.module_tracker import Scope
from mpskit.estimate.trace.storage_log import Ledger
from mpskit.estimate.trace.summary import Summary
from mpskit.estimate.trace.tracer import Tracer

__all__ = [
    "PRECISIONS",
    "Job",
    "Precision",
    "Step",
    "Traced",
    "build_model",
    "precision_of",
    "trace",
]

# model, batch -> one step of the traced kind
Step = Callable[[torch.nn.Module, Any], None]


@dataclass(frozen=True)
class Precision:
    """What a precision's name stands for: the weights' dtype and autocast's, where there is one."""

    weights: torch.dtype | None = None
    autocast: torch.dtype | None = None


PRECISIONS = {
    "fp32": Precision(),
    "bf16": Precision(weights=torch.bfloat16),
    "fp16": Precision(weights=torch.float16),
    "bf16-mixed": Precision(autocast=torch.bfloat16),
    "fp16-mixed": Precision(autocast=torch.float16),
}


def precision_of(name: str) -> Precision:
    """Return the precision of that name.

    Raises:
        ArgumentError: there is none.
    """
    found = PRECISIONS.get(name)
    if found is None:
        raise ArgumentError(f"no precision {name!r}: one of {', '.join(PRECISIONS)}", given=name)
    return found


def build_model(model: Any) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Return the module itself, or build it without memory; wrappers are taken off.

    Raises:
        ArgumentTypeError: it is neither a module nor something that makes one.
        EstimateError: it cannot be built without memory.
    """
    if not isinstance(model, torch.nn.Module):
        if not callable(model):
            raise ArgumentTypeError(
                f"a model is an nn.Module or a callable that makes one, not {type(model).__name__}",
                given=model,
            )
        tracer = Tracer(Ledger())
        with _explained(tracer, "building the model"), intercepting(tracer):
            model = model()
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError(f"the callable made {type(model).__name__}, no nn.Module")
    return _unwrapped(model)


def _unwrapped(model: torch.nn.Module) -> tuple[torch.nn.Module, tuple[str, ...]]:
    parallel = torch.nn.parallel
    notes: list[str] = []
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, torch.nn.Module):
            notes.append("the model is compiled; its eager form was traced")
        elif isinstance(model, parallel.DataParallel | parallel.DistributedDataParallel):
            name, inner = type(model).__name__, model.module
            notes.append(f"{name} was taken off: its replicas and gradient buckets are not counted")
        else:
            return model, tuple(notes)
        model = inner


@dataclass
class Traced:
    """The events of a trace, before any allocator has seen them."""

    ledger: Ledger
    target: Target
    precision: str
    notes: tuple[str, ...] = ()

    def estimate(self, torch_version: str | None = None) -> MemoryEstimate:
        """Replay the events on the target's allocator of a torch version (the installed one)."""
        version = torch_version or torch.__version__
        model = allocator_for(self.target.device, torch_version=version)
        played = replay(self._events(), model)
        summary = Summary(self.ledger, played.timeline)
        kinds: dict[str, Any] = summary.by_kind()
        return MemoryEstimate(
            device=self.target.device,
            torch_version=version,
            precision=self.precision,
            peak_bytes=summary.peak_bytes,
            driver_bytes=played.peak_driver_bytes,
            peak=summary.place(),
            top_modules=summary.top_modules(),
            timeline=summary.timeline(),
            notes=self.notes,
            **kinds,
        )

    def _events(self) -> Iterator[Event]:
        records = self.ledger.records
        for event in self.ledger.events:
            number = event if event >= 0 else ~event
            yield Event("alloc" if event >= 0 else "free", number, records[number].size)


@dataclass
class Job:
    """One trace: what is run, on what, and how often."""

    model: torch.nn.Module
    batch: Any
    target: Target
    precision: str
    steps: int
    phase: str
    notes: tuple[str, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)


def trace(job: Job, prepare: Callable[[contextlib.ExitStack], Step]) -> Traced:
    """Run the steps of a job.

    Args:
        job: what to run; its ledger is filled.
        prepare: called once the model is exchanged, with a stack for what it has to undo;
            returns the step.
    """
    ledger, dtype = job.ledger, precision_of(job.precision).weights
    kind = job.target.device
    tracer = Tracer(ledger, job.target.charges, doubles=kind != "mps", numbers=kind == "cpu")
    with contextlib.ExitStack() as stack:
        _refuse_lazy(job.model)
        stack.enter_context(_no_collection())
        stack.enter_context(kept_random_state())
        stack.enter_context(job.target.defaults())
        stack.enter_context(swapped(job.model, ledger, dtype))
        stack.callback(ledger.close)
        batch = build_batch(job.batch, ledger, dtype)
        step = prepare(stack)
        scope = Scope(job.model, ledger, job.phase)
        stack.enter_context(scope.watching())
        stack.enter_context(guarded(tracer.reads, job.target.device))
        with _explained(tracer, "the step"), intercepting(tracer):
            for number in range(job.steps):
                scope.begin(number)
                step(job.model, batch)
    return Traced(ledger, job.target, job.precision, (*job.notes, *tracer.reads.notes))


def _refuse_lazy(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise EstimateError(
                f"{name} of {type(model).__name__} has no shape yet (a lazy module): run the model "
                "once on a small real batch first",
                given=name,
            )


@contextlib.contextmanager
def _explained(tracer: Tracer, what: str) -> Iterator[None]:
    """Turn what goes wrong inside into an ``EstimateError`` that names operator and module."""
    try:
        yield
    except EstimateError:
        raise
    except Exception as error:
        where = tracer.where
        raise EstimateError(
            f"{what} failed in {where.failed or where.path() or 'the step itself'}, after operator "
            f"{where.op or 'none'}: {type(error).__name__}: {error}. Run the same step on a small "
            "real batch first; if it works there, give step= or train_step= without what failed",
            given=error,
        ) from error


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector would free cycles at moments that no other run repeats."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
