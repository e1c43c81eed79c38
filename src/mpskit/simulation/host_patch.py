"""The simulated machine outside torch: mpskit's readings, ``platform`` and ``psutil``.

``sys.platform``, ``os.name``, ``platform.system()``, ``platform.platform()`` and
``platform.uname()`` are unchanged. Programs use them to choose how to call the operating system
(which libraries to load, how to start a process), which is still the real one.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from mpskit.dispatch.patches import Patches
from mpskit.host import Machine, Readings
from mpskit.system.machine import read_readings, replace_readings

__all__ = ["install", "simulated_readings"]


def simulated_readings(machine: Machine) -> Readings:
    """Return the machine's readings, with the real Python and torch."""
    real = read_readings()
    own = {"python_version": real.python_version, "torch_version": real.torch_version}
    return machine.readings().model_copy(update=own)


def install(machine: Machine, driver_bytes: Callable[[], int], patches: Patches) -> None:
    """Make mpskit's readings, ``platform`` and ``psutil`` those of ``machine``.

    Args:
        machine: the simulated machine.
        driver_bytes: returns what the simulated GPU holds now, which is part of the RAM.
        patches: records how to undo it.
    """
    readings = simulated_readings(machine)
    before = replace_readings(readings)
    patches.on_exit(lambda: replace_readings(before))
    _patch_platform(readings, patches)
    _patch_psutil(readings, driver_bytes, patches)


def _patch_platform(readings: Readings, patches: Patches) -> None:
    versioninfo = ("", "", "")

    def mac_ver(
        release: str = "",
        versioninfo: tuple[str, str, str] = versioninfo,
        machine: str = "",
    ) -> tuple[str, tuple[str, str, str], str]:
        return readings.mac_ver or release, versioninfo, readings.machine or machine

    patches.set(platform, "machine", lambda: readings.machine or "")
    patches.set(platform, "processor", lambda: readings.processor or "")
    patches.set(platform, "mac_ver", mac_ver)


def _patch_psutil(readings: Readings, driver_bytes: Callable[[], int], patches: Patches) -> None:
    import psutil

    real_memory: Callable[[], Any] = psutil.virtual_memory
    real_swap: Callable[[], Any] = psutil.swap_memory
    total = readings.memory_total or 0
    idle = readings.memory_available or 0

    def virtual_memory() -> Any:
        free = max(0, idle - driver_bytes())
        percent = round(100 * (total - free) / total, 1) if total else 0.0
        return real_memory()._replace(
            total=total, available=free, free=free, used=total - free, percent=percent
        )

    def swap_memory() -> Any:
        return real_swap()._replace(total=0, used=0, free=0, percent=0.0, sin=0, sout=0)

    patches.set(psutil, "virtual_memory", virtual_memory)
    patches.set(psutil, "swap_memory", swap_memory)
