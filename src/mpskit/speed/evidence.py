"""Times that were measured on this machine, kept for the same workload later.

They lie in the cache folder beside what is remembered of MPS on virtual machines, one file for each
machine and torch. A file that is missing, corrupt or read-only is never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpskit._base.files import read_small, write_whole
from mpskit._base.values import Value
from mpskit.device.choice import forget_decisions
from mpskit.device.probe import cache_folder, machine_key
from mpskit.host import Host, detect_host
from mpskit.settings import read_settings
from mpskit.speed.workload import Workload
from mpskit.system.machine import replaced_readings

__all__ = ["Evidence", "all_evidence", "clear_evidence", "find_evidence", "keep_evidence"]

_PREFIX = "times-"
_MOST = 200
# Two counts of one step differ by a few operations on single numbers.
_SAME = 1e-3


class Evidence(Value):
    """The times of one workload on two devices of this machine.

    Attributes:
        flops: floating-point operations of a step, by which it is found again.
        bytes_moved: bytes that its operators read and write, likewise.
        dtype: of its arithmetic, likewise.
        seconds: device -> median seconds a step.
        torch_version: the torch that ran it.
    """

    flops: float
    bytes_moved: float
    dtype: str | None
    seconds: dict[str, float]
    torch_version: str

    def __str__(self) -> str:
        times = ", ".join(f"{device} {s * 1e3:.4g} ms" for device, s in self.seconds.items())
        return (
            f"{self.flops:.3g} operations, {self.bytes_moved:.3g} bytes, {self.dtype}: {times} "
            f"(torch {self.torch_version})"
        )


def keep_evidence(workload: Workload, seconds: dict[str, float], torch_version: str) -> bool:
    """Keep what a workload took; return whether it was written.

    Times on a simulated machine are this computer's and are not kept, nor is anything under
    ``MPSKIT_NO_CACHE``.
    """
    path = _path(torch_version)
    if path is None or not workload.flops or replaced_readings() is not None:
        return False
    new = Evidence(
        flops=workload.flops,
        bytes_moved=workload.bytes_moved or 0.0,
        dtype=workload.dtype,
        seconds=seconds,
        torch_version=torch_version,
    )
    others = [old for old in _read(path) if not _same(old, workload)]
    kept = [entry.model_dump() for entry in (*others, new)][-_MOST:]
    forget_decisions()  # those of this process were made without the new times
    return write_whole(path, json.dumps(kept))


def find_evidence(workload: Workload, torch_version: str) -> Evidence | None:
    """Return what this machine and torch took for the same counts, if they were ever timed."""
    path = _path(torch_version)
    if path is None or not workload.flops or replaced_readings() is not None:
        return None
    return next((entry for entry in _read(path) if _same(entry, workload)), None)


def all_evidence() -> list[Evidence]:
    """Return everything that is kept, of every torch."""
    return [entry for path in _files() for entry in _read(path)]


def clear_evidence() -> int:
    """Remove everything that is kept, and return how much it was; what cannot be removed stays."""
    removed = 0
    for path in _files():
        count = len(_read(path))
        try:
            path.unlink()
        except OSError:
            continue
        removed += count
    return removed


def _same(entry: Evidence, workload: Workload) -> bool:
    pairs = ((entry.flops, workload.flops), (entry.bytes_moved, workload.bytes_moved))
    close = all(abs(mine - (other or 0.0)) <= _SAME * mine for mine, other in pairs)
    return close and entry.dtype == workload.dtype


def _folder() -> Path | None:
    settings = read_settings()
    if settings.no_cache:
        return None
    try:
        return cache_folder(settings)
    except RuntimeError:
        return None


def _path(torch_version: str, host: Host | None = None) -> Path | None:
    folder = _folder()
    key = machine_key(host or detect_host(), torch_version)
    return None if folder is None else folder / f"{_PREFIX}{key}.json"


def _files() -> list[Path]:
    folder = _folder()
    return [] if folder is None else sorted(folder.glob(f"{_PREFIX}*.json"))


def _read(path: Path) -> list[Evidence]:
    try:
        found = json.loads(read_small(path) or "[]")
    except (ValueError, RecursionError):
        return []
    return list(_valid(found if isinstance(found, list) else []))


def _valid(found: list[Any]) -> Iterator[Evidence]:
    for entry in found:
        try:
            evidence = Evidence.model_validate(entry)
        except ValueError:
            continue
        seconds = evidence.seconds.values()
        # An endless count would be within any share of every other one.
        counted = _positive(evidence.flops) and math.isfinite(evidence.bytes_moved)
        if counted and seconds and all(map(_positive, seconds)):
            yield evidence


def _positive(number: float) -> bool:
    return 0 < number < math.inf
