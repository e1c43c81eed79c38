"""GPU readings without torch: utilization (macOS) and number of cards (Linux).

``ioreg`` reports the accelerator without root. Its class (``IOAccelerator``) and keys
(``PerformanceStatistics``, ``Device Utilization %``) are those that public Mac monitors read; the
parser was written from them, not run on a Mac.
"""

from __future__ import annotations

import plistlib
import sys
from pathlib import Path
from typing import Any

from mpskit.system.process import output_of

__all__ = ["GPU_COMMAND", "card_count", "gpu_percent", "gpu_percent_in"]


# The absolute path lets posix_spawn start it, without forking a process that uses Metal: see
# run_bounded.
GPU_COMMAND = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator", "-a")
_KEYS = ("Device Utilization %", "GPU Activity(%)")
_NVIDIA = "0x10de"
_TIME_LIMIT_S = 2.0


def gpu_percent() -> float | None:
    """Return the GPU's utilization by all programs, 0 to 100; None where it is unknown.

    It runs ``ioreg`` on macOS, which takes some milliseconds; elsewhere there is no such figure.
    """
    return gpu_percent_in(_asked()) if sys.platform == "darwin" else None


def _asked() -> bytes:
    return (output_of(GPU_COMMAND, seconds=_TIME_LIMIT_S) or "").encode()


def gpu_percent_in(plist: bytes) -> float | None:
    """Return the busiest accelerator's utilization from ``ioreg -a``'s output; None for none."""
    try:
        found = plistlib.loads(plist)
    except Exception:  # noqa: BLE001 - plistlib raises anything on malformed XML
        return None
    shares = [_share(entry) for entry in found] if isinstance(found, list) else []
    return max((share for share in shares if share is not None), default=None)


def _share(entry: Any) -> float | None:
    statistics = entry.get("PerformanceStatistics") if isinstance(entry, dict) else None
    if not isinstance(statistics, dict):
        return None
    percents = [_percent(statistics.get(key)) for key in _KEYS]
    return next((percent for percent in percents if percent is not None), None)


def _percent(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        return None
    # Clamped before it becomes a float, which holds no integer of 400 digits.
    return float(min(100, max(0, value)))


def card_count(vendor: str) -> int:
    """Return how many GPUs of a PCI vendor (``0x8086``) Linux shows; 0 elsewhere.

    NVIDIA's driver has a numbered device file for each, in containers too; those of other vendors
    have render nodes.
    """
    if vendor == _NVIDIA:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    nodes = Path("/sys/class/drm").glob("renderD*/device/vendor")
    return sum(_text(node) == vendor for node in nodes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
