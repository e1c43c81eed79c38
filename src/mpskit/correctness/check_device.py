"""``check_device``: tries each known bug on this machine, in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING

from mpskit._base.arguments import check_names
from mpskit._base.values import Value
from mpskit.backends import versions
from mpskit.correctness.accelerator import available_device
from mpskit.correctness.issue_table import KnownIssue, Severity, issue_table, issues_for
from mpskit.errors import DeviceUnavailableError
from mpskit.host import detect_host
from mpskit.system.process import Finished, run_bounded

if TYPE_CHECKING:
    import torch

__all__ = ["CheckReport", "IssueCheck", "Outcome", "check_device"]

_SECONDS = 60.0
_TOGETHER = 4  # processes at a time; each holds some 300 MB
# Signals by which a kernel's own failure ends a process; SIGKILL is memory or a person.
_CRASHES = ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGTRAP", "SIGFPE")


class Outcome(StrEnum):
    """What the try of a known bug came to."""

    AFFECTED = "affected"
    NOT_AFFECTED = "not affected"
    UNTRIED = "cannot be tried"


class IssueCheck(Value):
    """One known bug, tried here.

    Attributes:
        key: the bug's short name in ``known_issues``.
        summary: what goes wrong.
        severity: how much it matters.
        outcome: whether this device has it.
        detail: how far the result was off, or why it cannot be tried; empty for one that is right.
        listed: whether ``known_issues`` expects it of this chip, macOS and torch.
        workaround: what to do about it.
        links: where it was reported.
    """

    key: str
    summary: str
    severity: Severity
    outcome: Outcome
    detail: str
    listed: bool
    workaround: str
    links: tuple[str, ...]

    def __str__(self) -> str:
        told = f" ({self.detail})" if self.detail else ""
        line = f"{self.outcome}: {self.key}: {self.summary}{told}"
        return f"{line}. {self.workaround}" if self.outcome is Outcome.AFFECTED else line


class CheckReport(Value):
    """What was found on one device.

    Attributes:
        device: that was checked.
        machine: the machine in one line.
        torch_version: of the torch that was checked.
        checks: one for each known bug, the affected first.
    """

    device: str
    machine: str
    torch_version: str
    checks: tuple[IssueCheck, ...]

    @property
    def affected(self) -> tuple[IssueCheck, ...]:
        """The bugs that this device has."""
        return self._of(Outcome.AFFECTED)

    @property
    def not_affected(self) -> tuple[IssueCheck, ...]:
        """The bugs that did not show. One that comes and goes may still be there."""
        return self._of(Outcome.NOT_AFFECTED)

    @property
    def untried(self) -> tuple[IssueCheck, ...]:
        """The bugs that could not be tried, each with why."""
        return self._of(Outcome.UNTRIED)

    def _of(self, outcome: Outcome) -> tuple[IssueCheck, ...]:
        return tuple(check for check in self.checks if check.outcome is outcome)

    def __str__(self) -> str:
        counts = f"{len(self.affected)} affected, {len(self.not_affected)} not affected"
        head = f"{self.device}, torch {self.torch_version}: {counts}, {len(self.untried)} untried"
        shown = [str(check) for check in self.checks if check.outcome is not Outcome.NOT_AFFECTED]
        return "\n".join([head, *shown])


def check_device(
    device: str | torch.device | None = None, *, keys: Sequence[str] | None = None
) -> CheckReport:
    """Try each known bug of the MPS backend on this machine, against the CPU.

    Each reproduction runs in a process of its own with a time limit of a minute, a few at a time,
    so that one that aborts or hangs takes nothing with it. A bug that is not expected of this chip,
    macOS and torch is tried as well: what it says here is evidence.

    Args:
        device: ``mps``, ``cuda:0``, also ``cpu``; None for this machine's accelerator.
        keys: the bugs to try, by their names in ``known_issues``; None for all.

    Raises:
        DeviceUnavailableError: torch sees no such device, or a child process cannot be started.
        ArgumentError: there is no bug of that name.
        ArgumentTypeError: an argument has the wrong type.
    """
    found = available_device(device)
    table = {issue.key: issue for issue in issue_table()}
    chosen = tuple(table) if keys is None else check_names("keys", keys, table, what="known issue")
    if not sys.executable:
        raise DeviceUnavailableError("this process does not know its Python, which a check needs")
    host, version = detect_host(), versions.torch_version() or ""
    listed = {issue.key for issue in issues_for(host, version)}

    def check(issue: KnownIssue) -> IssueCheck:
        outcome, detail = _try(issue, str(found))
        facts = issue.model_dump(include={"key", "summary", "severity", "workaround", "links"})
        return IssueCheck(outcome=outcome, detail=detail, listed=issue.key in listed, **facts)

    checks = _all(check, [table[key] for key in chosen])
    order = list(Outcome)
    return CheckReport(
        device=str(found),
        machine=host.summary,
        torch_version=version,
        checks=tuple(sorted(checks, key=lambda one: order.index(one.outcome))),
    )


def _all(
    check: Callable[[KnownIssue], IssueCheck], issues: Sequence[KnownIssue]
) -> list[IssueCheck]:
    """Check a few at a time; an interrupt starts no more of them."""
    pool = ThreadPoolExecutor(max_workers=min(_TOGETHER, os.cpu_count() or 1))
    try:
        return list(pool.map(check, issues))
    finally:
        pool.shutdown(cancel_futures=True)


def _try(issue: KnownIssue, device: str) -> tuple[Outcome, str]:
    if issue.untried is not None:
        return Outcome.UNTRIED, issue.untried
    # -P: a torch.py in the current folder must not be run.
    command = [sys.executable, "-P", "-m", "mpskit.correctness.reproductions", issue.key, device]
    try:
        child = run_bounded(command, seconds=_SECONDS)
    except TimeoutError:
        return Outcome.UNTRIED, f"no answer within {_SECONDS:g} s"
    except OSError as error:
        return Outcome.UNTRIED, f"no process could be started ({error.strerror or error})"
    return _verdict(child)


def _verdict(child: Finished) -> tuple[Outcome, str]:
    from mpskit.correctness.reproductions import AFFECTED, RIGHT, UNTRIED

    if child.returncode < 0:
        return _died(-child.returncode)
    lines = [line for line in child.stdout.splitlines() if line.startswith("mpskit-")]
    mark, _, rest = lines[-1].partition(" ") if lines else ("", "", "")
    if mark == RIGHT:
        return Outcome.NOT_AFFECTED, ""
    if mark == AFFECTED:
        off = (
            "NaN, or another shape"
            if rest == "inf"
            else f"off by {float(rest):.0%} of the largest value"
        )
        return Outcome.AFFECTED, off
    if mark == UNTRIED:
        return Outcome.UNTRIED, rest
    last = [line.strip() for line in child.stderr.splitlines() if line.strip()][-1:]
    return Outcome.UNTRIED, (last or [f"its process ended with code {child.returncode}"])[0][:200]


def _died(number: int) -> tuple[Outcome, str]:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    crashed = name in _CRASHES
    return Outcome.AFFECTED if crashed else Outcome.UNTRIED, f"its process died of {name}"
