"""The machine's memory now: RAM, swap, a container's limit, memory pressure.

``mpskit.host`` describes the machine and is cached; these figures change all the time. Each is None
where it cannot be read. Replaced readings (a simulated machine's) are honoured.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from mpskit.system.cgroups import memory_files, memory_room
from mpskit.system.machine import replaced_readings
from mpskit.system.sysctl import read_sysctls

__all__ = [
    "Pressure",
    "SystemMemory",
    "memory_pressure",
    "pressure_of_level",
    "pressure_of_psi",
    "restart_peak",
    "status_bytes",
    "system_memory",
]

Pressure: TypeAlias = Literal["normal", "warning", "critical"]

_LEVEL = "kern.memorystatus_vm_pressure_level"
_PSI = Path("/proc/pressure/memory")
# This library's threshold for PSI, in percent of the last ten seconds in which tasks waited.
_STALLED = 10.0


class SystemMemory(NamedTuple):
    """RAM and swap now, in bytes; None where one cannot be read."""

    total: int | None
    available: int | None
    swap_total: int | None
    swap_used: int | None


def system_memory() -> SystemMemory:
    """Return RAM and swap now; a container's limit can reduce ``available``."""
    replaced = replaced_readings()
    if replaced is not None:
        told: Any = replaced
        return SystemMemory(
            told.memory_total, told.memory_available, told.swap_total, told.swap_used
        )
    ram, swap = _psutil("virtual_memory"), _psutil("swap_memory")
    rooms = [getattr(ram, "available", None), memory_room(memory_files())]
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
    except Exception:  # noqa: BLE001 - psutil raises anything on a malformed /proc
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def memory_pressure() -> Pressure | None:
    """Return the memory pressure that the system reports; None where it reports none.

    macOS: ``kern.memorystatus_vm_pressure_level``. Linux: ``/proc/pressure/memory`` (PSI), which
    containers and older kernels do not have.
    """
    replaced = replaced_readings()
    if replaced is not None:
        return pressure_of_level((replaced.sysctl or {}).get(_LEVEL, ""))
    if sys.platform == "darwin":
        return pressure_of_level(read_sysctls(numbers=(_LEVEL,)).get(_LEVEL, ""))
    return pressure_of_psi(_text(_PSI) or "")


def pressure_of_level(text: str) -> Pressure | None:
    """Return the meaning of macOS's level: 1 normal, 2 warning, 4 critical."""
    levels: dict[str, Pressure] = {"1": "normal", "2": "warning", "4": "critical"}
    return levels.get(text.strip())


def pressure_of_psi(text: str) -> Pressure | None:
    """Return the meaning of ``/proc/pressure/memory``, by the shares of the last ten seconds.

    ``critical``: all tasks waited for memory for at least 10% of them; ``warning``: some did. The
    kernel defines no threshold; this one is the library's.
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


def restart_peak() -> bool:
    """Reset ``VmHWM``, this process's peak resident size; return False where that is impossible.

    Linux only. ``ru_maxrss`` of this process is reset with it.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
