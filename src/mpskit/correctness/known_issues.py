"""Known bugs of torch's MPS backend that apply to a machine: wrong results, crashes, leaks.

The table is ``data/known_issues.toml``, each row with its GitHub threads. Only the versions of
torch and macOS and the chip decide; nothing is run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from mpskit._base.data import read_toml
from mpskit._base.values import Value
from mpskit.backends import versions
from mpskit.errors import ArgumentTypeError
from mpskit.host import Chip, Host, detect_host
from mpskit.host.host import check_host

__all__ = ["KnownIssue", "Severity", "known_issues"]

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
    source: str
    links: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.severity}: {self.summary} ({self.source}). {self.workaround}"


def known_issues(
    host: Host | None = None, torch_version: str | None = None
) -> tuple[KnownIssue, ...]:
    """Return the known bugs of the MPS backend that apply, the most serious first.

    Only Macs have any. A machine whose macOS or chip is unknown gets all bugs that cannot be ruled
    out. This imports no torch.

    Args:
        host: the machine; None for this one.
        torch_version: such as ``"2.13.0"``; None for the installed one.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
    """
    check_host(host)
    if not isinstance(torch_version, str | None):
        raise ArgumentTypeError(
            f"torch_version must be a str such as '2.13.0', got {torch_version!r}",
            given=torch_version,
        )
    host = detect_host() if host is None else host
    torch = torch_version or versions.torch_version()
    if torch is None or not host.is_mac:
        return ()
    return tuple(issue for issue in _table() if _applies(issue, host, torch))


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
def _table() -> tuple[KnownIssue, ...]:
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
        source=", ".join(f"{repo.rpartition('/')[2]}#{number}" for repo, _, number in threads),
        links=tuple(f"https://github.com/{repo}/issues/{number}" for repo, _, number in threads),
    )


def _range(pair: Sequence[str]) -> Range:
    since, until = pair
    return Range(since=since or None, until=until or None)
