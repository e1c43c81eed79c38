"""Runs the steps of an estimate on an exchanged model, and sums up what they took."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mpskit._base.sizes import format_bytes
from mpskit.allocator import Event, allocator_for, replay
from mpskit.backends.precisions import precision_of
from mpskit.backends.versions import require
from mpskit.dispatch.intercept import intercepting
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.patches import Patches
from mpskit.dispatch.random_state import isolate
from mpskit.errors import ArgumentTypeError, EstimateError, UnsupportedTorchError
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.targets import Target
from mpskit.estimate.trace import guards
from mpskit.estimate.trace.batch import build_batch
from mpskit.estimate.trace.control_flow import frames_of, user_line
from mpskit.estimate.trace.gradient_buckets import Wrapper, add_buckets
from mpskit.estimate.trace.model_state import exchange
from mpskit.estimate.trace.module_tracker import ModuleTracker
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.estimate.trace.summary import Summary
from mpskit.estimate.trace.tracer import Tracer

__all__ = [
    "Built",
    "Job",
    "Step",
    "Traced",
    "build_model",
    "margin_notes",
    "trace",
]

# model, batch -> one step of the traced kind
Step = Callable[[torch.nn.Module, Any], None]


@dataclass(frozen=True)
class Built:
    """A model to trace.

    Attributes:
        module: the module itself, without wrappers.
        notes: what was taken off.
        parallel: the ``DistributedDataParallel`` among it, whose buckets take memory.
    """

    module: torch.nn.Module
    notes: tuple[str, ...] = ()
    parallel: Wrapper | None = None


def build_model(model: Any) -> Built:
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
        model = _built(model)
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError(f"the callable made {type(model).__name__}, no nn.Module")
    return _unwrapped(model)


def _built(make: Callable[[], Any]) -> Any:
    tracer = Tracer(StorageLog())
    tracer.reads.values_matter = False

    def build(patches: Patches) -> Any:
        isolate(patches, tracer.generator)
        with _recording(), _explained(tracer, "building the model"), intercepting(tracer):
            return make()

    return Patches.around(build)


def _unwrapped(model: torch.nn.Module) -> Built:
    distributed: Wrapper | None = None
    notes: list[str] = []
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, torch.nn.Module):
            notes.append("the model is compiled; its eager form was traced")
        elif isinstance(model, torch.nn.parallel.DistributedDataParallel):
            distributed, inner = model, model.module
            notes.append(
                "DistributedDataParallel was taken off: its gradient buckets are counted, what its "
                "communication takes is not"
            )
        elif isinstance(model, torch.nn.DataParallel):
            inner = model.module
            notes.append("DataParallel was taken off: its replicas are not counted")
        else:
            return Built(model, tuple(notes), distributed)
        model = inner


@dataclass
class Traced:
    """The events of a trace, before any allocator has seen them."""

    log: StorageLog
    target: Target
    precision: str
    notes: tuple[str, ...] = ()

    def estimate(self, torch_version: str | None = None) -> MemoryEstimate:
        """Replay the events on the target's allocator of a torch version (the installed one)."""
        version = torch_version or torch.__version__
        model = allocator_for(self.target.device, torch_version=version)
        played = replay(self._events(), model)
        summary = Summary(self.log, played.timeline)
        kinds: dict[str, Any] = summary.by_kind()
        return MemoryEstimate(
            device=self.target.device,
            torch_version=version,
            precision=self.precision,
            peak_bytes=summary.peak_bytes,
            peak_margin_bytes=summary.margin_bytes,
            driver_bytes=played.peak_driver_bytes,
            peak=summary.place(),
            top_modules=summary.top_modules(),
            timeline=summary.timeline(),
            notes=(*self.notes, *margin_notes(summary.margin_bytes)),
            **kinds,
        )

    def _events(self) -> Iterator[Event]:
        records = self.log.records
        for event in self.log.events:
            number = event if event >= 0 else ~event
            yield Event("alloc" if event >= 0 else "free", number, records[number].size)


def margin_notes(margin: int) -> tuple[str, ...]:
    """Return the note that a margin of the peak needs, if there is one."""
    if not margin:
        return ()
    note = (
        f"the peak can be {format_bytes(margin)} higher: what convolutions and half-precision "
        "products take while they run depends on the processor and its threads "
        f"({torch.get_num_threads()} here; measured on x86-64)"
    )
    return (note,)


@dataclass
class Job:
    """One trace: what is run, on what, and how often."""

    built: Built
    batch: Any
    target: Target
    precision: str
    steps: int
    phase: str
    log: StorageLog = field(default_factory=StorageLog)
    counts: OpCounts | None = None  # of the last step, if asked for
    keeps_dtypes: bool = False  # the weights stay as they are, whatever the precision's are

    @property
    def model(self) -> torch.nn.Module:
        """Return the module that is traced."""
        return self.built.module

    def __post_init__(self) -> None:
        """Raise UnsupportedTorchError if the installed torch is too old for the trace."""
        require("estimate")


def trace(job: Job, prepare: Callable[[Patches], Step]) -> Traced:
    """Run the steps of a job on this thread; other threads see torch as it is.

    Args:
        job: what to run; its log is filled.
        prepare: called once the model is exchanged, with the patches for what it has to undo;
            returns the step.

    Raises:
        EstimateError: a step cannot be traced, or another thread is estimating the same model.
    """
    log, target = job.log, job.target
    dtype = None if job.keeps_dtypes else precision_of(job.precision).weights
    tracer = Tracer(
        log,
        target.op_memory,
        missing=target.missing,
        supports_float64=target.device != "mps",
        scalars_on_device=target.device == "cpu",
    )

    def run(patches: Patches) -> None:
        _refuse_lazy(job.model)
        patches.share(_without_collection)
        isolate(patches, tracer.generator)
        target.install(patches)
        exchange(patches, job.model, log, dtype)
        if job.built.parallel is not None:
            add_buckets(job.built.parallel, job.model, log, patches)
        batch = build_batch(job.batch, log, dtype)
        step = prepare(patches)
        tracker = ModuleTracker(job.model, log, job.phase)
        tracker.install(patches)
        guards.install(patches, tracer.reads, target.device)
        with _explained(tracer, "the step"), intercepting(tracer):
            for number in range(job.steps):
                tracker.begin(number)
                tracer.counts = job.counts if number == job.steps - 1 else None
                step(job.model, batch)
        log.close()  # before what this function holds is freed

    around = guards.surrounding_autocast(target.device)
    with _recording():
        Patches.around(run)
    notes = [*job.built.notes, *tracer.reads.notes]
    if around is not None:
        notes.append(f"autocast to {around} is on around the estimate, and is in the figures")
    return Traced(log, target, job.precision, tuple(notes))


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """Let autograd record as in a training script, whatever is switched off around the call."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


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
    except (EstimateError, UnsupportedTorchError):
        raise
    except Exception as error:
        where = tracer.where
        cause = f"{type(error).__name__}: {str(error).rstrip('. ')}"
        line = user_line(frames_of(error.__traceback__))
        place = _place(where.failed or where.path()) + (f" ({line})" if line else "")
        raise EstimateError(
            f"{what} failed in {place}, after operator {where.op or 'none'}: {cause}. Run the same "
            "step on a small real batch first; if it works there, give a step without what failed "
            "(step= or train_step=; --step on the command line)",
            given=error,
        ) from error


def _place(path: str) -> str:
    """Return a module's path in a sentence; a layer of a Sequential is only called ``0``."""
    return f"module {path!r}" if path.replace(".", "").isdecimal() else path or "the step itself"


def _without_collection(patches: Patches) -> None:
    """The garbage collector would free cycles at moments that no other run repeats."""
    if gc.isenabled():
        patches.on_exit(gc.enable)
        gc.disable()
