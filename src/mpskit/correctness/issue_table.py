"""The table of known bugs of torch's MPS backend: wrong results, crashes, leaks.

It is ``data/known_issues.toml``, each row with its GitHub threads. The versions of torch and macOS,
the chip and, where they are known, a model's operators decide; nothing is run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from mpskit._base.data import read_toml
from mpskit._base.values import Value
from mpskit.backends import versions
from mpskit.correctness.operators import CONDITIONS, OpUse
from mpskit.host import Chip, Host

__all__ = ["KnownIssue", "Range", "Severity", "issue_table", "issues_for"]

Severity: TypeAlias = Literal["serious", "moderate", "minor"]

_ORDER = ("serious", "moderate", "minor")


class Range(Value):
    """Versions from ``since`` up to, but excluding, ``until``; None leaves a side open."""

    since: str | None = None
    until: str | None = None

    def holds(self, version: str | None) -> bool:
        """Return whether a version is in the range; an unknown one may be."""
        return versions.within(version, self.since, self.until)

    def __str__(self) -> str:
        since = f"from {self.since}" if self.since else ""
        until = f"before {self.until}" if self.until else ""
        return " ".join(part for part in (since, until) if part) or "all"


class KnownIssue(Value):
    """A bug, and where it applies.

    Attributes:
        key: a short name that never changes.
        summary: what goes wrong, in one clause without a full stop.
        severity: ``serious`` (silently wrong results in ordinary use), ``moderate`` (wrong results
            or a crash with unusual shapes, layouts or calls) or ``minor`` (rare, or unconfirmed).
        workaround: what to do about it.
        torch: the torch versions that have it.
        macos: the macOS versions that have it.
        chips: the Apple generations that have it (``M1``); empty for all.
        ops: the aten operators that have it, without overload (``linear``, ``mm``); empty where it
            is not bound to an operator.
        dtypes: the floating-point dtypes that have it; empty for all.
        when: what else a call must be like: names of `operators.CONDITIONS` with their values.
        training: whether only gradients are wrong.
        untried: why ``mpskit check`` cannot try it; None where it can.
        source: the GitHub threads, such as ``pytorch#193487``.
        links: the addresses of these threads.
    """

    key: str
    summary: str
    severity: Severity
    workaround: str
    torch: Range
    macos: Range
    chips: tuple[str, ...]
    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    when: dict[str, int | bool]
    training: bool
    untried: str | None
    source: str
    links: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.severity}: {self.summary} ({self.source}). {self.workaround}"

    def concerns(self, uses: Iterable[OpUse]) -> bool:
        """Return whether one of these calls can meet the bug.

        A bug that is bound to no operator and no shape concerns every model.
        """
        return not (self.ops or self.when) or any(self._meets(use) for use in uses)

    def _meets(self, use: OpUse) -> bool:
        if (self.ops and use.op not in self.ops) or (self.training and not use.training):
            return False
        floats = [one.dtype for one in use.tensors if one.floating]
        if self.dtypes and not any(dtype in self.dtypes for dtype in floats):
            return False
        return all(CONDITIONS[name](use, value) for name, value in self.when.items())


def issues_for(
    host: Host, torch_version: str, uses: Iterable[OpUse] | None = None
) -> tuple[KnownIssue, ...]:
    """Return the bugs that apply to a machine and a torch, the most serious first.

    Args:
        host: the machine; one that is no Mac has none.
        torch_version: such as ``"2.13.0"``.
        uses: the operators of a model, which then have to match as well; None for any model.
    """
    if not host.is_mac:
        return ()
    found = tuple(issue for issue in issue_table() if _applies(issue, host, torch_version))
    if uses is None:
        return found
    known = tuple(uses)
    return tuple(issue for issue in found if issue.concerns(known))


def _applies(issue: KnownIssue, host: Host, torch: str) -> bool:
    fits = issue.torch.holds(torch) and issue.macos.holds(host.os_version)
    return fits and (not issue.chips or _is_one_of(host.chip, issue.chips))


def _is_one_of(chip: Chip | None, generations: Sequence[str]) -> bool:
    """Return whether a chip is of one of the generations, ``M1`` for an M1 Max too."""
    if chip is None or chip.generation is None:
        # An Intel Mac has no Apple chip; a chip that is only called "Apple" may be any of them.
        return chip is not None
    return f"{chip.family}{chip.generation}" in generations


@functools.cache
def issue_table() -> tuple[KnownIssue, ...]:
    """Return every row, the most serious first."""
    rows = (_issue(row) for row in read_toml("known_issues.toml")["issue"])
    return tuple(sorted(rows, key=lambda issue: _ORDER.index(issue.severity)))


def _issue(row: dict[str, Any]) -> KnownIssue:
    threads = [thread.partition("#") for thread in row["issues"]]
    return KnownIssue(
        key=row["key"],
        summary=row["summary"],
        severity=row["severity"],
        workaround=row["workaround"],
        torch=_range(row["torch"]),
        macos=_range(row.get("macos", ("", ""))),
        chips=tuple(row.get("chips", ())),
        ops=tuple(row.get("ops", ())),
        dtypes=tuple(row.get("dtypes", ())),
        when=row.get("when", {}),
        training=row.get("training", False),
        untried=row.get("untried"),
        source=", ".join(f"{repo.rpartition('/')[2]}#{number}" for repo, _, number in threads),
        links=tuple(f"https://github.com/{repo}/issues/{number}" for repo, _, number in threads),
    )


def _range(pair: Sequence[str]) -> Range:
    since, until = pair
    return Range(since=since or None, until=until or None)
