"""Pure rules about Linux: what control groups allow, and the kernel's version."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from mpskit.system.cgroups import NO_LIMIT, count

__all__ = [
    "cpu_quota",
    "memory_limit",
    "system_version",
    "usable_cpus",
]


def _named(files: Mapping[str, str], name: str) -> Iterable[tuple[str, str]]:
    """Return folder and text of every file of that name: a group's own and its parents'."""
    for path, text in files.items():
        folder, _, last = path.rpartition("/")
        if last == name:
            yield folder, text


def cpu_quota(files: Mapping[str, str] | None) -> float | None:
    """Return how many CPUs' worth of time the control groups allow; None means no limit.

    Args:
        files: file name to text, as in :class:`Readings`: ``cpu.max`` (version 2) or
            ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` (version 1), with or without a folder.
            With several groups the tightest counts. A malformed file is no limit.
    """
    files = files or {}
    quotas = [_share(*text.split()[:2]) for _, text in _named(files, "cpu.max") if text.split()]
    for folder, text in _named(files, "cpu.cfs_quota_us"):
        period = files.get(f"{folder}/cpu.cfs_period_us" if folder else "cpu.cfs_period_us")
        quotas.append(_share(text, period or "100000"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _share(quota: str, period: str = "100000") -> float | None:
    micros, length = count(quota), count(period)
    return micros / length if micros and length else None


def memory_limit(files: Mapping[str, str] | None, memory_total: int | None = None) -> int | None:
    """Return the bytes the control groups allow; None means no limit below the machine's RAM."""
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [count(text) for name in names for _, text in _named(files or {}, name)]
    ceiling = min(memory_total or NO_LIMIT, NO_LIMIT)
    return min((limit for limit in limits if limit and limit < ceiling), default=None)


def usable_cpus(counts: Iterable[int | None], quota: float | None) -> int:
    """Return how many CPUs this process can use: the least of the counts and the quota, or 1.

    A quota of 1.5 CPUs gives 2: a second thread still helps if it waits half of the time.
    """
    limits = [count for count in counts if count and count > 0]
    limits += [math.ceil(quota)] if quota is not None and quota < 1 << 20 else []
    return max(1, min(limits, default=1))


def system_version(platform_string: str | None) -> str | None:
    """Return the kernel's version from ``Linux-6.1.0-x86_64-with-glibc2.36``, or Windows's."""
    match = re.search(r"(?:^|-)(\d+\.\d+(?:\.\d+)*)", platform_string or "")
    return match[1] if match else None
