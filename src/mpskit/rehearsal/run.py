"""Enters and leaves a rehearsal, and makes the report of what happened in between."""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, cast

import torch

from mpskit._base.user_code import is_own, shown_place
from mpskit.correctness.issue_table import issue_table, issues_for
from mpskit.correctness.operators import OpUse
from mpskit.correctness.traced_operators import watch_calls
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.patches import Patches
from mpskit.errors import SimulationError
from mpskit.estimate.trace.guards import search_on
from mpskit.estimate.trace.user_line import shown
from mpskit.host import Machine
from mpskit.rehearsal import assuming, loading, torch_features
from mpskit.rehearsal.assuming import Assumed, ScriptLog, ScriptTracer
from mpskit.rehearsal.changes import Kinds, changes
from mpskit.rehearsal.children import Reports, request_of
from mpskit.rehearsal.findings import Findings, Kind, Spot, spot_of
from mpskit.rehearsal.handler import Rehearsing, ScriptDispatch
from mpskit.rehearsal.memory import Mark, RehearsedMemory, allocator_of, timeline, verdicts
from mpskit.rehearsal.result import End, Place, Rehearsal, Severity, ordered
from mpskit.rehearsal.tracking import RehearsalEnd, ScriptTracker
from mpskit.rehearsal.writing import Aside
from mpskit.simulation.children import carried
from mpskit.simulation.core import Simulation
from mpskit.simulation.lifecycle import SimulatedMac, check_plain
from mpskit.simulation.memory import Memory
from mpskit.speed.count import workload_of
from mpskit.speed.step_time import estimate_time
from mpskit.speed.watch import Wait, watch_cache, watch_printing

__all__ = ["RehearsalRun"]

_P = ParamSpec("_P")


class _Mac(SimulatedMac):
    """A simulated Mac that is changed before it is switched on."""

    def __init__(
        self,
        machine: Machine,
        fallback: bool | None,
        prepare: Callable[[Simulation], None],
        request: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__(machine, rng="cpu", fallback=fallback)
        self._prepare, self._request = prepare, request

    def _built(self, memory: type[Memory] = RehearsedMemory) -> Simulation:
        simulation = super()._built(memory)
        self._prepare(simulation)
        return simulation

    def _carried(self) -> AbstractContextManager[None]:
        return carried(self.machine, fallback=self._fallback, request=self._request())


class RehearsalRun:
    """A run on a simulated Mac without numbers, as context manager and as decorator.

    ``rehearse`` makes it.

    Attributes:
        machine: the machine that the script sees.
    """

    def __init__(
        self,
        machines: list[Machine],
        *,
        steps: int | None,
        strict: bool,
        write: bool,
        fallback: bool | None,
        stepped: Callable[[int], None] | None = None,
        reports: Reports | None = None,
    ) -> None:
        self.machine = machines[0]
        options: dict[str, Any] = {"steps": steps, "strict": strict, "write": write}
        options["fallback"] = fallback
        self._reports = reports
        self._mac = _Mac(
            self.machine,
            fallback,
            self._prepare,
            lambda: request_of(machines, self._children.folder, **options),
        )
        self._machines, self._steps = machines, steps
        self._strict, self._write = strict, write
        self._told = stepped
        self._report: Rehearsal | None = None
        self._patches = Patches()
        self._fresh = functools.partial(
            RehearsalRun, machines, **options, stepped=stepped, reports=reports
        )

    @property
    def report(self) -> Rehearsal:
        """What happened; known once the run has ended.

        Raises:
            SimulationError: it has not.
        """
        if self._report is None:
            raise SimulationError("the rehearsal has not ended: read .report after the with block")
        return self._report

    def __enter__(self) -> Self:
        self._started, self._report = time.perf_counter(), None
        self._children = self._reports or Reports()
        try:
            self._mac.__enter__()
        except BaseException:
            self._children.close()
            raise
        try:
            self._install(self._patches)
        except BaseException:
            self._patches.undo()
            self._mac.__exit__(None, None, None)
            self._children.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            self._patches.undo()
        finally:
            self._mac.__exit__(kind, error, trace)
        try:
            return self.conclude(error)
        finally:
            self._children.close()

    def conclude(self, error: BaseException | None) -> bool:
        """Make the report, and leave it to ``__exit__`` to leave the Mac; the first call counts.

        Args:
            error: what ended the run; None for its own end.

        Returns:
            Whether it is the exception that ends a rehearsal after its steps.
        """
        if self._report is None:
            if error is not None:
                self._note_error(error)
            self._report = self._told_best(self._made(_end_of(error)))
        return isinstance(error, RehearsalEnd)

    def __call__(self, function: Callable[_P, object]) -> Callable[_P, Rehearsal]:
        """Return ``function`` rehearsed anew at each call, with the report as its result.

        What the function raises is raised.

        Raises:
            ArgumentTypeError: it is not a plain function (a coroutine's body would run outside).
        """
        check_plain(function, "rehearse")

        @functools.wraps(function)
        def rehearsed(*args: _P.args, **kwargs: _P.kwargs) -> Rehearsal:
            with self._fresh() as run:
                function(*args, **kwargs)
            return run.report

        return rehearsed

    def _prepare(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._memory = cast("RehearsedMemory", simulation.memory)
        log = ScriptLog()
        self._where = log.where
        self._findings = Findings(log.where)
        tracer = ScriptTracer(log)
        tracer.reads = Assumed(log.where, findings=self._findings)
        ops = frozenset(op for issue in issue_table() for op in issue.ops)
        self._shared = Rehearsing(tracer, self._findings, OpCounts(), {}, ops, self._strict)
        self._counts = self._shared.counts
        self._kinds = Kinds(simulation.tags.entry)
        self._tracker = ScriptTracker(log, self._steps, self._stepped, self._kinds)
        self._memory.mark, self._memory.refused = self._mark, self._refused
        simulation.refuse = self._shared.refuse
        simulation.handler = lambda mac, state: ScriptDispatch(mac, state, self._shared)

    def _install(self, patches: Patches) -> None:
        simulation = self._simulation
        reads = cast("Assumed", self._shared.tracer.reads)
        assuming.install(
            patches, simulation.tags, reads, lambda name: self._shared.wait(Wait.COPY, name)
        )
        loading.install(patches, self._findings)
        self._features = torch_features.install(patches, self._findings)
        if not self._write:
            Aside(self._findings).install(patches)
        watch_printing(patches, self._waited, "mps")
        watch_cache(patches, self._waited)
        watch_calls(patches, lambda name, args, kwargs: self._called(name, args, kwargs))
        search_on(patches, reads)
        self._tracker.install(patches)

    def _called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call of a function that has a known bug, if a tensor of it is on the Mac."""
        tags = self._simulation.tags
        if self._shared.is_new and any(
            isinstance(one, torch.Tensor) and tags.has(one) for one in args
        ):
            self._shared.note_call(name, args, kwargs, compiled=self._features.compiled)

    def _waited(self, wait: Wait) -> None:
        self._shared.wait(wait, wait.name.lower())

    def _stepped(self) -> None:
        """Keep the counts of the step that is complete, and begin the next one's."""
        if self._tracker.steps < 3:
            self._counts, self._shared.counts = self._shared.counts, OpCounts()
        if self._told is not None:
            self._told(self._tracker.steps)

    def _mark(self) -> Mark:
        where = self._where
        line = self._tracker.user_line() if self._tracker.own_thread else None
        return (where.op, where.path(), where.phase, where.step, line)

    def _refused(self, error: Exception) -> None:
        where = self._where
        text = str(error).split(". ")[0]
        spot = spot_of(sys._getframe(1))
        self._findings.add(
            Kind.MEMORY, where.op, f"{text}, in {where.path() or 'no module'} ({where.phase})",
            "see what to change", spot=spot, rated=False,
        )  # fmt: skip
        if self._strict:
            raise error

    def _note_error(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            text = f"{type(error).__name__}: {error}".splitlines()[0]  # the whole is printed
            self._findings.add(Kind.ERROR, "", text, spot=_spot_in(error))
        elif isinstance(error, SystemExit) and error.code not in {None, 0}:
            text = f"the script ended itself with exit code {error.code}"
            self._findings.add(Kind.ERROR, "exit", text, spot=_spot_in(error))

    @property
    def end(self) -> RehearsalEnd | None:
        """What has ended the run, if that were its steps."""
        return self._tracker.end

    def _told_best(self, own: Rehearsal) -> Rehearsal:
        """Return a child's report in place of one that trained nothing."""
        if self._reports is not None or own.steps:
            return own
        best, number = self._children.best(own)
        if best is None or best is own:
            return own
        return best.model_copy(update={"processes": number})

    def _made(self, ended: End) -> Rehearsal:
        version = str(torch.__version__)
        steps = self._tracker.steps
        events = self._memory.events
        moments, top = timeline(
            events, allocator_of(self.machine, version), lambda mark: (mark[3], mark[2])
        )
        work = workload_of(self._counts, recurrent=False, training=True) if steps else None
        self._add_issues(version)
        self._features.end(steps)
        found = verdicts(events, self._machines, version, _place)
        return Rehearsal(
            torch_version=version,
            machines=found,
            peak=None if top < 0 else _place(events.mark(top)),
            changes=changes(events, self._kinds, self._machines, found, version),
            findings=ordered(self._findings.listed(steps)),
            steps=steps,
            ended=ended,
            time=None if work is None else estimate_time(work, self.machine),
            launches=self._counts.launches if steps else None,
            flops=self._counts.flops if steps else None,
            elapsed_seconds=time.perf_counter() - self._started,
            timeline=moments,
        )

    def _add_issues(self, version: str) -> None:
        uses: dict[OpUse, Spot] = self._shared.uses
        for issue in issues_for(self._mac.host, version, uses):
            spot = next((uses[use] for use in uses if issue.concerns([use])), None)
            if spot is not None and (issue.ops or issue.when):
                text = f"{issue.summary} ({issue.source})"
                severity: Severity = "wrong" if issue.severity == "serious" else "note"
                self._findings.add(
                    Kind.ISSUE, ", ".join(issue.ops), text, issue.workaround,
                    severity=severity, spot=spot, rated=False,
                )  # fmt: skip


def _end_of(error: BaseException | None) -> End:
    if error is None:
        return "end"
    if isinstance(error, RehearsalEnd):
        return "steps"
    if isinstance(error, SystemExit):
        return "exit"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "error"


def _place(mark: Mark) -> Place:
    op, module, phase, step, line = mark
    file, _, number = ("", "", "") if line is None else shown(line).rpartition(":")
    return Place(
        file=file or None,
        line=int(number) if number else None,
        module=module,
        phase=phase,
        step=step,
        op=op,
    )


def _spot_in(error: BaseException) -> Spot:
    """Return the innermost line of the user's own code that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if is_own(frame.filename) and frame.lineno is not None:
            shown_file = shown_place(frame.filename, frame.lineno).rpartition(":")[0]
            return Spot(str(Path(shown_file)), frame.lineno)
    return Spot(None, None)
