"""Readings of battery and Low Power Mode; ``mpskit.host.power`` judges them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from mpskit.system.machine import TIME_LIMIT_S, read_all, replaced_readings
from mpskit.system.process import output_of

__all__ = ["read_power"]

# psutil has no name for Low Power Mode.
_LOW_POWER_MODE = ("/usr/bin/pmset", "-g", "live")


def read_power() -> Mapping[str, str] | None:
    """Return the system's power readings; None where there are none.

    The keys, each only where it is known: ``percent`` (the battery's charge), ``plugged`` (``1`` or
    ``0``), ``live`` (what ``pmset -g live`` prints, on a Mac). They are not in
    :func:`read_readings`, because ``pmset`` is another process.
    """
    replaced = replaced_readings()
    if replaced is not None:
        return replaced.power
    values = read_all({"battery": _battery, "live": _live})
    texts = (values["battery"] or {}) | {"live": values["live"]}
    return {name: text for name, text in texts.items() if text} or None


def _battery() -> dict[str, str]:
    import psutil

    found: Any = psutil.sensors_battery()  # its stub leaves None out
    if found is None:
        # On a Mac this means mains power only; elsewhere it can also mean unknown.
        return {"plugged": "1"} if platform.system() == "Darwin" else {}
    plugged = {} if found.power_plugged is None else {"plugged": str(int(found.power_plugged))}
    return {"percent": f"{found.percent:.0f}", **plugged}


def _live() -> str | None:
    mac = platform.system() == "Darwin"
    return output_of(_LOW_POWER_MODE, seconds=TIME_LIMIT_S) if mac else None
