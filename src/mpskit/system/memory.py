"""The machine's memory at this moment: RAM, swap, what a container still allows, pressure.

``mpskit.host`` says what machine this is and remembers it; these figures change while one looks.
Every one is None where it cannot be read. Replaced readings (a simulated machine's) are honoured.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from mpskit.host.linux import cgroup_folders
from mpskit.system.machine import replaced_readings

__all__ = [
    "Pressure",
    "SystemMemory",
    "group_room",
    "memory_pressure",
    "pressure_of_level",
    "pressure_of_psi",
    "status_bytes",
    "system_memory",
]

Pressure: TypeAlias = Literal["normal", "warning", "critical"]

_LEVEL = "kern.memorystatus_vm_pressure_level"
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_PSI = Path("/proc/pressure/memory")
# Version 2 and version 1 names of: the limit, what is used, and the pages that can be dropped.
_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_FILES = ("memory.stat", *(name for names in _NAMES for name in names[:2]))
_LIMITS = tuple(names[0] for names in _NAMES)
# Version 1 says "no limit" by a number near 2**63.
_NO_LIMIT = 1 << 60
# Our own reading of PSI: a tenth of the last ten seconds in which some, or every, task waited.
_STALLED = 10.0


class SystemMemory(NamedTuple):
    """RAM and swap now, in bytes; None where one cannot be read."""

    total: int | None
    available: int | None
    swap_total: int | None
    swap_used: int | None


def system_memory() -> SystemMemory:
    """Return RAM and swap now; ``available`` is less where a container's limit leaves less."""
    replaced = replaced_readings()
    if replaced is not None:
        told: Any = replaced
        return SystemMemory(
            told.memory_total, told.memory_available, told.swap_total, told.swap_used
        )
    ram, swap = _psutil("virtual_memory"), _psutil("swap_memory")
    rooms = [getattr(ram, "available", None), group_room(_group_files())]
    return SystemMemory(
        total=getattr(ram, "total", None),
        available=min((room for room in rooms if room is not None), default=None),
        swap_total=getattr(swap, "total", None),
        swap_used=getattr(swap, "used", None),
    )


def _psutil(function: str) -> Any:
    import psutil

    try:
        return getattr(psutil, function)()
    except Exception:  # noqa: BLE001 - a malformed /proc makes psutil raise whatever its parser does
        return None


def group_room(files: Mapping[str, str]) -> int | None:
    """Return the bytes that the control groups still allow; None means no limit is known.

    Args:
        files: file name to text, with or without a folder: ``memory.max``, ``memory.current`` and
            ``memory.stat`` (version 2), or their version 1 names. With several groups the
            tightest counts. File pages that can be dropped are not in use. A malformed file is as
            good as none.
    """
    folders = {name.rpartition("/")[0] for name in files}
    rooms = [_room(files, f"{folder}/" if folder else "") for folder in folders]
    return min((room for room in rooms if room is not None), default=None)


def _room(files: Mapping[str, str], folder: str) -> int | None:
    for limit, used, droppable in _NAMES:
        allowed = _number(files.get(folder + limit, ""))
        held = _number(files.get(folder + used, ""))
        if allowed is not None and held is not None:
            spare = re.search(rf"^{droppable} (\d+)$", files.get(f"{folder}memory.stat", ""), re.M)
            return max(0, allowed - held + min(int(spare[1]) if spare else 0, held))
    return None


def _number(text: str) -> int | None:
    text = text.strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else _NO_LIMIT
    return number if number < _NO_LIMIT else None


def _group_files() -> dict[str, str]:
    texts = {name: _text(_GROUPS / name) for folder in _limiting() for name in _within(folder)}
    return {name: text for name, text in texts.items() if text is not None}


@functools.cache
def _limiting() -> tuple[str, ...]:
    """Return the groups that have a limit at all, found once: most machines have none."""
    folders = cgroup_folders(_text(_OWN_GROUPS) or "") if sys.platform == "linux" else []
    return tuple(folder for folder in folders if any(map(_limit, _within(folder))))


def _within(folder: str) -> list[str]:
    return [f"{folder}/{name}".lstrip("/") for name in _FILES]


def _limit(name: str) -> bool:
    limits = name.endswith(_LIMITS)
    return limits and _number(_text(_GROUPS / name) or "") is not None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def memory_pressure() -> Pressure | None:
    """Return how short of memory the system says it is; None where it does not say.

    macOS: ``kern.memorystatus_vm_pressure_level``. Linux: ``/proc/pressure/memory`` (PSI), which
    containers and older kernels do not have.
    """
    replaced = replaced_readings()
    if replaced is not None:
        return pressure_of_level((replaced.sysctl or {}).get(_LEVEL, ""))
    if sys.platform == "darwin":
        return pressure_of_level(_sysctl(_LEVEL))
    return pressure_of_psi(_text(_PSI) or "")


def pressure_of_level(text: str) -> Pressure | None:
    """Return the meaning of macOS's level: 1 normal, 2 warning, 4 critical."""
    levels: dict[str, Pressure] = {"1": "normal", "2": "warning", "4": "critical"}
    return levels.get(text.strip())


def pressure_of_psi(text: str) -> Pressure | None:
    """Return the meaning of ``/proc/pressure/memory``, by the shares of the last ten seconds.

    ``critical``: all tasks waited for memory for at least 10% of them; ``warning``: some did. The
    threshold is this library's, the kernel names none.
    """
    shares = {
        match[1]: float(match[2])
        for match in re.finditer(r"^(some|full) avg10=(\d{1,3}\.\d{1,2}) ", text, re.M | re.A)
    }
    if "some" not in shares:
        return None
    if shares.get("full", 0.0) >= _STALLED:
        return "critical"
    return "warning" if shares["some"] >= _STALLED else "normal"


def status_bytes(field: str, pid: int | None = None) -> int | None:
    """Return a size from Linux's ``/proc/PID/status``, such as ``VmData``; None elsewhere."""
    text = _text(Path(f"/proc/{pid or 'self'}/status")) or ""
    match = re.search(rf"^{field}:\s+(\d+) kB$", text, re.M | re.A)
    return int(match[1]) * 1024 if match else None


def _sysctl(name: str) -> str:
    """Return a number of macOS's kernel as text, empty if it has none of that name."""
    import ctypes

    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    ask = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    arguments = (name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return str(value.value) if ask is not None and ask(*arguments) == 0 else ""
