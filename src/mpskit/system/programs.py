"""Who else uses the machine's memory: programs by name, the largest first."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import PurePath
from typing import Any

from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value

__all__ = ["MemoryUser", "largest_users"]


class MemoryUser(Value):
    """A program and the memory that all its processes hold together.

    Attributes:
        name: the program's name, without its path or arguments.
        resident_bytes: the sum of the resident sizes; shared pages count once per process.
        processes: how many processes have that name.
    """

    name: str
    resident_bytes: int
    processes: int

    def __str__(self) -> str:
        return f"{self.name} {format_bytes(self.resident_bytes)}"


def largest_users(count: int = 5) -> tuple[MemoryUser, ...]:
    """Return the programs other than this process that hold most memory.

    Processes that may not be asked, or end meanwhile, are left out. Only names are kept: no path,
    no user, no arguments.
    """
    held: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for process in _others():
        name, size = _name(process.info.get("name")), _resident(process.info)
        if name and size:
            held[name] += size
            number[name] += 1
    return tuple(
        MemoryUser(name=name, resident_bytes=size, processes=number[name])
        for name, size in held.most_common(count)
    )


def _others() -> list[Any]:
    import psutil

    try:
        # Fields that may not be read come as None: process_iter takes AccessDenied upon itself.
        found = list(psutil.process_iter(["name", "memory_info"]))
    except (psutil.Error, OSError):
        return []
    return [process for process in found if process.pid != os.getpid()]


def _name(name: object) -> str:
    return PurePath(name).name if isinstance(name, str) else ""


def _resident(info: dict[str, Any]) -> int:
    return int(getattr(info.get("memory_info"), "rss", 0))
