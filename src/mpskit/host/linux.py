"""Pure rules about Linux: what control groups allow, and the processor's name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

__all__ = [
    "cgroup_folders",
    "cpu_brand",
    "cpu_quota",
    "memory_limit",
    "physical_cores",
    "system_version",
    "usable_cpus",
]

_NUMBER = re.compile(r"\d{1,19}", re.ASCII)
# Version 1 writes "no limit" as the largest page-aligned integer; values near it are no limits.
_NO_LIMIT = 1 << 60


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if _NUMBER.fullmatch(text) else None


def _named(files: Mapping[str, str], name: str) -> Iterable[tuple[str, str]]:
    """Return folder and text of every file of that name: a group's own and its parents'."""
    for path, text in files.items():
        folder, _, last = path.rpartition("/")
        if last == name:
            yield folder, text


def cgroup_folders(membership: str) -> list[str]:
    """Return the folders under ``/sys/fs/cgroup`` that can limit a process, its own first.

    Args:
        membership: the text of ``/proc/self/cgroup``. Parents are listed too, because a limit
            on a parent holds for its children; inside a container the group's own path may not
            exist, while the root's files are the container's.
    """
    found: dict[str, None] = {}
    for line in membership.splitlines()[:64]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts), -1, -1):
            found["/".join([*([controllers] if controllers else []), *parts[:depth]])] = None
    return list(found)


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
    micros, length = _number(quota), _number(period)
    return micros / length if micros and length else None


def memory_limit(files: Mapping[str, str] | None, memory_total: int | None = None) -> int | None:
    """Return the bytes the control groups allow; None means no limit below the machine's RAM."""
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_number(text) for name in names for _, text in _named(files or {}, name)]
    ceiling = min(memory_total or _NO_LIMIT, _NO_LIMIT)
    return min((limit for limit in limits if limit and limit < ceiling), default=None)


def usable_cpus(counts: Iterable[int | None], quota: float | None) -> int:
    """Return how many CPUs this process can use: the least of the counts and the quota, or 1.

    A quota of 1.5 CPUs gives 2: a second thread still helps if it waits half of the time.
    """
    limits = [count for count in counts if count and count > 0]
    limits += [math.ceil(quota)] if quota is not None and quota < 1 << 20 else []
    return max(1, min(limits, default=1))


def cpu_brand(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of ``/proc/cpuinfo``."""
    for key in ("model name", "Hardware", "cpu model", "Model"):
        if match := re.search(rf"^{key}\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE):
            return match[1].strip()
    return None


def physical_cores(cpuinfo: str) -> int | None:
    """Return how many cores ``/proc/cpuinfo`` lists, without hyper-threads."""
    packages = re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    return len(set(zip(packages, cores, strict=False))) or None


def system_version(platform_string: str | None) -> str | None:
    """Return the kernel's version from ``Linux-6.1.0-x86_64-with-glibc2.36``, or Windows's."""
    match = re.search(r"(?:^|-)(\d+\.\d+(?:\.\d+)*)", platform_string or "")
    return match[1] if match else None
