"""Control groups: this process's limits, and how much memory they still allow.

``mpskit.host.linux`` has the rules for the limits that a :class:`Host` reports.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["NO_LIMIT", "count", "folders_of", "memory_files", "memory_room", "read_limits"]

# Version 1 writes "no limit" as the largest page-aligned number; nothing near it is a limit.
NO_LIMIT = 1 << 60

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# Version 2 and version 1 names of the limit, the usage, and the droppable pages.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_MEMORY_LIMITS = tuple(limit for limit, _, _ in _MEMORY)
_MEMORY_FILES = ("memory.stat", *(name for names in _MEMORY for name in names[:2]))
_CPU_LIMITS = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")
_COUNT = re.compile(r"\d{1,19}", re.ASCII)


def folders_of(membership: str) -> list[str]:
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


def count(text: str) -> int | None:
    """Return the number in a file; None for ``max`` and for malformed text."""
    text = text.strip()
    return int(text) if _COUNT.fullmatch(text) else None


def read_limits() -> dict[str, str]:
    """Return the files that limit CPUs and memory, for this process's groups and their parents."""
    return _read(_own_folders(), (*_CPU_LIMITS, *_MEMORY_LIMITS))


def memory_files() -> dict[str, str]:
    """Return the files that tell how much memory the groups with a limit still allow."""
    return _read(_limiting(), _MEMORY_FILES)


@functools.cache
def _limiting() -> tuple[str, ...]:
    """Return the groups with a memory limit, found once because most machines have none."""
    found = _read(_own_folders(), _MEMORY_LIMITS)
    return tuple({name.rpartition("/")[0]: None for name in found if _limit(found[name])})


def _own_folders() -> list[str]:
    return folders_of(_text(_MEMBERSHIP) or "") if sys.platform == "linux" else []


def _read(folders: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    paths = [f"{folder}/{name}".lstrip("/") for folder in folders for name in names]
    texts = {path: _text(_ROOT / path) for path in paths}
    return {path: text.strip() for path, text in texts.items() if text is not None}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def memory_room(files: Mapping[str, str]) -> int | None:
    """Return the bytes that the control groups still allow; None means no limit is known.

    Args:
        files: file name to text, with or without a folder: ``memory.max``, ``memory.current`` and
            ``memory.stat`` (version 2), or their version 1 names. With several groups the tightest
            counts. File pages that can be dropped are not in use. A malformed file counts as
            missing.
    """
    folders = {name.rpartition("/")[0] for name in files}
    rooms = [_room(files, f"{folder}/" if folder else "") for folder in folders]
    return min((room for room in rooms if room is not None), default=None)


def _room(files: Mapping[str, str], folder: str) -> int | None:
    for limit, used, droppable in _MEMORY:
        allowed, held = _limit(files.get(folder + limit, "")), count(files.get(folder + used, ""))
        if allowed is not None and held is not None:
            spare = re.search(rf"^{droppable} (\d+)$", files.get(f"{folder}memory.stat", ""), re.M)
            return max(0, allowed - held + min(int(spare[1]) if spare else 0, held))
    return None


def _limit(text: str) -> int | None:
    number = count(text)
    return number if number is not None and number < NO_LIMIT else None
