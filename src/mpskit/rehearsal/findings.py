"""Collects what a rehearsal meets: each kind of thing at each line once, with how often."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType

import torch

from mpskit._base.user_code import is_own, shown_place
from mpskit.estimate.trace.storage_log import Where
from mpskit.rehearsal.result import Finding, Severity
from mpskit.speed.watch import Wait

__all__ = ["WAIT_FIXES", "Findings", "Kind", "Spot", "spot_of"]

_MPSKIT = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)


class Kind(StrEnum):
    """What a finding is."""

    OPERATOR = "missing-operator"
    FALLBACK = "fallback"
    ARGUMENTS = "arguments"
    COLLECTIVE = "collective"
    DTYPE = "dtype"
    DEVICES = "device-mismatch"
    MEMORY = "out-of-memory"
    PINNED = "pinned-memory"
    WORKERS = "workers"
    RESTARTS = "workers-restarted"
    WAIT = "host-sync"
    CACHE = "empty-cache"
    AUTOCAST = "autocast"
    COMPILE = "compile"
    ISSUE = "known-issue"
    ASSUMED = "assumed"
    WRITE = "write"
    ERROR = "error"


_SEVERITIES: dict[Kind, Severity] = {
    Kind.FALLBACK: "slow",
    Kind.RESTARTS: "slow",
    Kind.WAIT: "slow",
    Kind.CACHE: "slow",
    Kind.AUTOCAST: "slow",
    Kind.COMPILE: "note",
    Kind.ISSUE: "wrong",
    Kind.ASSUMED: "note",
    Kind.WRITE: "note",
}
WAIT_FIXES = {
    Wait.VALUE: "keep it a tensor (loss.detach()) and read it every some steps",
    Wait.COPY: "copy once after the loop, or every some steps",
    Wait.SHAPE: "torch.where or a multiplied mask keeps the shape",
    Wait.PRINT: "print every some steps",
    Wait.CACHE: "leave the cache alone inside the loop",
}
# What matters only where it happens again in each step.
_REPEATED = frozenset({Kind.WAIT, Kind.CACHE})


@dataclass(frozen=True, slots=True)
class Spot:
    """A line, and whether it was reached through an installed library that did it on its own."""

    file: str | None
    line: int | None
    library: str | None = None


def spot_of(frame: FrameType | None) -> Spot:
    """Return the innermost line of the user's own code, from ``frame`` out."""
    library: str | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        if is_own(name):
            shown, _, line = shown_place(name, frame.f_lineno).rpartition(":")
            return Spot(shown, int(line), library)
        if library is None:
            library = _library(name)
        frame = frame.f_back
    return Spot(None, None, library)


def _library(name: str) -> str | None:
    """Return the package that a file belongs to; None for torch, mpskit and Python itself."""
    if name.startswith((_TORCH, _MPSKIT, "<")):
        return None
    parts = Path(name).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return None


@dataclass
class _Entry:
    severity: Severity
    module: str
    text: str
    fix: str
    rated: bool
    count: int = 0
    steady: int = 0  # after the first optimizer step


class Findings:
    """Counts by kind, operator and line.

    Args:
        where: tells the module and the step at any moment.
    """

    def __init__(self, where: Where) -> None:
        self._where = where
        self._found: dict[tuple[Kind, str, Spot], _Entry] = {}

    def add(
        self,
        kind: Kind,
        op: str,
        text: str,
        fix: str = "",
        *,
        severity: Severity | None = None,
        spot: Spot | None = None,
        rated: bool = True,
    ) -> None:
        """Count something that happened now.

        Args:
            kind: what it is.
            op: the operator, or what else was called.
            text: what happened; only the first text of a kind, operator and line is kept.
            fix: what to do about it.
            severity: where the kind alone does not tell.
            spot: the line; by default the caller's own.
            rated: whether it happened now; False for what was concluded at the end.
        """
        spot = spot or spot_of(sys._getframe(1))
        entry = self._found.get((kind, op, spot))
        if entry is None:
            severity = severity or _severity(kind, spot)
            module = self._where.path() if rated else ""
            entry = self._found[kind, op, spot] = _Entry(severity, module, text, fix, rated)
        entry.count += 1
        entry.steady += self._where.step > 0

    def listed(self, steps: int) -> list[Finding]:
        """Return what was found in ``steps`` optimizer steps."""
        return [
            Finding(
                kind=kind.value,
                severity=entry.severity,
                op=op,
                module=entry.module,
                file=spot.file,
                line=spot.line,
                count=entry.count,
                per_step=_rate(entry, steps),
                text=f"{spot.library}: {entry.text}" if spot.library else entry.text,
                fix=entry.fix,
            )
            for (kind, op, spot), entry in self._found.items()
            if kind not in _REPEATED or not steps or _rate(entry, steps)
        ]


def _severity(kind: Kind, spot: Spot) -> Severity:
    """What a library does of its own accord is no mistake of the script's."""
    if kind in _REPEATED and spot.library is not None:
        return "note"
    return _SEVERITIES.get(kind, "stops")


def _rate(entry: _Entry, steps: int) -> float | None:
    """Return how often it happened in a step; what was only concluded at the end has no rate."""
    if not entry.rated:
        return None
    if steps > 1:
        return entry.steady / (steps - 1)
    return float(entry.count) if steps else None
