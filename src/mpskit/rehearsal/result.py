"""What a rehearsal found: the verdict of each machine, and what breaks, slows or may be wrong."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.speed.step_time import StepTime, TimeRange

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "SCHEMA",
    "SEVERITIES",
    "Change",
    "Finding",
    "MachineVerdict",
    "Place",
    "Rehearsal",
    "Severity",
    "Verdict",
]

# Only keys are added under one number; a removed or changed key increments it.
SCHEMA = 1

Severity: TypeAlias = Literal["stops", "wrong", "slow", "note"]
End: TypeAlias = Literal["steps", "end", "exit", "error", "interrupted"]

# The most serious first.
SEVERITIES: tuple[Severity, ...] = ("stops", "wrong", "slow", "note")
_TITLES: dict[Severity, str] = {
    "stops": "stops the run on a Mac",
    "wrong": "may give wrong results",
    "slow": "slows each step",
    "note": "to know",
}


class Verdict(StrEnum):
    """How a run goes with a machine's memory."""

    FITS = "fits"
    TIGHT = "tight"
    DOES_NOT_FIT = "does not fit"


class Place(Value):
    """Where something happened.

    Attributes:
        file: of the user's own code; None where no line of it is on the stack.
        line: in that file.
        module: path of the module that ran; empty outside of all.
        phase: ``setup``, ``step``, ``backward`` or ``optimizer``.
        step: optimizer steps that were complete by then.
        op: the operator.
    """

    file: str | None = None
    line: int | None = None
    module: str = ""
    phase: str = "setup"
    step: int = 0
    op: str = ""

    def __str__(self) -> str:
        parts = [self.op, f"in {self.module}" if self.module else "", f"({self.phase})"]
        where = f" at {self.file}:{self.line}" if self.file else ""
        return " ".join(part for part in parts if part) + where


class Finding(Value):
    """One thing to know about the script, however often it happened.

    Attributes:
        kind: what it is, ``"missing-operator"`` say; see ``docs/rehearsal.md`` for all.
        severity: ``stops``, ``wrong``, ``slow`` or ``note``.
        op: the operator, or what else was called.
        module: path of the module that ran first; empty outside of all.
        file: of the user's own code; None where no line of it was on the stack.
        line: in that file.
        count: how often it happened.
        per_step: how often in each optimizer step, the first one left out; None where no step ran.
        text: what happened; for what stops, torch's own error.
        fix: what to do about it.
    """

    kind: str
    severity: Severity
    op: str = ""
    module: str = ""
    file: str | None = None
    line: int | None = None
    count: int = 1
    per_step: float | None = None
    text: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file else ""
        often = f" ({self.per_step:g} a step)" if self.per_step else ""
        often = often or (f" ({self.count} times)" if self.count > 1 else "")
        fix = f" -> {self.fix}" if self.fix else ""
        return f"{where}{self.text}{often}{fix}"


class MachineVerdict(Value):
    """How the run's memory goes with one machine; sizes in bytes.

    Attributes:
        machine: the profile's name.
        verdict: ``fits``; ``tight`` where the allocator grants it all and it is more than
            ``usable_bytes``; ``does not fit`` where the allocator refuses.
        peak_bytes: the largest sum of live tensors, as ``current_allocated_memory`` counts it.
        driver_bytes: the largest ``driver_allocated_memory``. Where it does not fit, both are what
            the run would take without the machine's limit.
        usable_bytes: what a job may use there, by ``mpskit budget``; None where unknown.
        limit_bytes: what the allocator refuses to pass; None without a limit.
        refused: where the allocator refused for the first time.
    """

    machine: str
    verdict: Verdict
    peak_bytes: int
    driver_bytes: int
    usable_bytes: int | None = None
    limit_bytes: int | None = None
    refused: Place | None = None

    def __str__(self) -> str:
        of = f" of {format_bytes(self.usable_bytes)} usable" if self.usable_bytes else ""
        text = (
            f"{self.machine}: {self.verdict}: peak {format_bytes(self.peak_bytes)} live, "
            f"{format_bytes(self.driver_bytes)} held from the driver{of}"
        )
        return text if self.refused is None else f"{text}; out of memory: {self.refused}"


class Change(Value):
    """Something that would take less memory, replayed from the events of this run.

    Attributes:
        what: to change.
        peak_bytes: the largest sum of live tensors then; None where it is only named, because the
            figure needs the script.
        driver_bytes: the largest memory held from the driver then.
        scaled: whether the figures are this run's events with some sizes scaled, which the script
            need not follow exactly.
        fits: the machines that the run would fit then, of those that it does not fit well.
    """

    what: str
    peak_bytes: int | None = None
    driver_bytes: int | None = None
    scaled: bool = False
    fits: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.peak_bytes is None or self.driver_bytes is None:
            return f"{self.what} (no figure without the script)"
        text = (
            f"{self.what}: about {format_bytes(self.peak_bytes)} live, "
            f"{format_bytes(self.driver_bytes)} held from the driver (scaled)"
        )
        return f"{text}, fits {_shortened(self.fits)}" if self.fits else text


def _shortened(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class Moment(Value):
    """Memory after one allocation event: bytes live, bytes held from the driver, completed steps.

    Attributes:
        event: number of the event.
        step: optimizer steps that were complete.
        phase: of the step.
        live_bytes: of tensors.
        driver_bytes: of the allocator's heaps.
    """

    event: int
    step: int
    phase: str
    live_bytes: int
    driver_bytes: int


class Rehearsal(Value):
    """What one run of a script showed; ``str()`` is the report.

    Attributes:
        schema_version: of this document, ``schema`` in JSON.
        torch_version: whose rules and operators these are.
        machines: the verdicts; the script saw the first machine.
        peak: where the most tensors were live.
        changes: what would take less memory, where a machine is short of it.
        findings: what stops the run first, then what may be wrong, what is slow, what to know.
        steps: optimizer steps that ran.
        ended: ``steps`` (as many as were asked for), ``end`` (the script's own), ``exit`` (by
            ``sys.exit``), ``error`` or ``interrupted``.
        time: of one step on the first machine's GPU, as a range with its sources; None where
            published times support none.
        launches: kernels in each step after the first.
        flops: floating-point operations in each step after the first.
        elapsed_seconds: how long the rehearsal took here, imports of the script included.
        timeline: some hundred moments of the first machine's memory.
        processes: how many Python processes were rehearsed; this is the report of the lowest rank
            that trained.
    """

    schema_version: int = SCHEMA
    torch_version: str
    machines: tuple[MachineVerdict, ...]
    peak: Place | None = None
    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    steps: int = 0
    ended: End = "end"
    time: StepTime | None = None
    launches: int | None = None
    flops: float | None = None
    elapsed_seconds: float = 0.0
    timeline: tuple[Moment, ...] = ()
    processes: int = 1

    @property
    def peak_bytes(self) -> int:
        """The first machine's largest sum of live tensors."""
        return self.machines[0].peak_bytes

    @property
    def driver_bytes(self) -> int:
        """The largest memory held from the driver on the first machine."""
        return self.machines[0].driver_bytes

    @property
    def verdict(self) -> Verdict:
        """The first machine's verdict on memory."""
        return self.machines[0].verdict

    @property
    def seconds(self) -> TimeRange | None:
        """Seconds of one step on the first machine's GPU; None without a range."""
        return None if self.time is None else self.time.step

    @property
    def runs(self) -> bool:
        """Whether nothing stops the script and it fits every machine that was asked for."""
        fits = all(one.verdict is not Verdict.DOES_NOT_FIT for one in self.machines)
        return fits and not self.of("stops") and self.ended not in {"error", "interrupted"}

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(one for one in self.findings if one.severity == severity)

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``mpskit rehearse --json``."""
        document = self.model_dump(mode="json", exclude={"schema_version"})
        top = ("verdict", "peak_bytes", "driver_bytes")
        seconds = None if self.seconds is None else self.seconds.model_dump(mode="json")
        given = {"schema": self.schema_version, **{key: getattr(self, key) for key in top}}
        return given | {"seconds": seconds} | document

    def plot(self, path: str | Path) -> Path:
        """Draw the memory over time, with the machines' limits as lines, into a file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ArgumentError: nothing was allocated, or the file cannot be written.
        """
        from mpskit.rehearsal.plot import plot_rehearsal

        return plot_rehearsal(self, Path(path))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for machine in self.machines:
            yield str(machine)
        if self.peak is not None:
            yield f"most tensors are live at {self.peak}"
        if self.launches:
            of = "no range, for want of published times" if self.time is None else str(self.time)
            yield f"a step has {self.launches} kernels: {of}"
        if self.changes:
            yield "what to change, to take less memory:"
            yield from (f"  {one}" for one in self.changes)
        for severity in SEVERITIES:
            found = self.of(severity)
            if found:
                yield f"{_TITLES[severity]}:"
                yield from (f"  {one}" for one in found)
        if not self.findings:
            yield "nothing breaks, nothing slows it"
        steps = f"{self.steps} optimizer step{'s' if self.steps != 1 else ''}"
        yield f"rehearsed {steps} in {self.elapsed_seconds:.1f} s ({_ENDS[self.ended]})"
        if self.processes > 1:
            of = "the lowest rank that trained"
            yield f"{self.processes} processes were rehearsed: this is of {of}"


_ENDS: dict[End, str] = {
    "steps": "then it was ended",
    "end": "to its own end",
    "exit": "the script ended itself",
    "error": "ended by an error",
    "interrupted": "interrupted",
}


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return findings with the most serious first, each severity in order of appearance."""
    return tuple(sorted(findings, key=lambda one: SEVERITIES.index(one.severity)))
