"""How much memory a process really costs the machine.

macOS: ``phys_footprint``, the figure of Activity Monitor, which counts what the GPU has mapped for
the process; the resident size does not. It is read through ``proc_pid_rusage`` of libSystem, laid
out after ``<sys/resource.h>`` (``struct rusage_info_v0``) and ``<libproc.h>``: written from the
headers and not run on a Mac. Linux: the resident size less shared pages (``/proc/PID/statm``),
close to psutil's USS and much cheaper to read. Windows: the private bytes. Elsewhere: the resident
size.
"""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["KIND", "footprint_bytes", "footprint_of", "phys_footprint_in"]

_KINDS = {"darwin": "phys_footprint", "linux": "resident less shared", "win32": "private"}
KIND = _KINDS.get(sys.platform, "resident")

_RUSAGE_INFO_V0 = 0
_UUID_BYTES = 16
# After the uuid come 64-bit counters; the eighth is ri_phys_footprint.
_COUNTERS = 10
_FOOTPRINT_COUNTER = 7


def footprint_bytes(pid: int | None = None) -> int | None:
    """Return the memory of a process (this one by default); None if it may not be asked."""
    import psutil

    try:
        if sys.platform == "darwin":
            return _phys_footprint(pid or os.getpid())
        return footprint_of(psutil.Process(pid).memory_info())
    except Exception:  # noqa: BLE001 - the process ended, may not be asked, or /proc is malformed
        return None


def footprint_of(info: Any) -> int:
    """Return the footprint from psutil's ``memory_info()``, by what this system puts into it."""
    private = getattr(info, "private", None)
    return int(private if private is not None else max(0, info.rss - getattr(info, "shared", 0)))


def _phys_footprint(pid: int) -> int | None:
    import ctypes

    size = _UUID_BYTES + _COUNTERS * 8
    # The kernel writes as much as the flavour has; the room is for a layout that grew.
    buffer = ctypes.create_string_buffer(4 * size)
    library = ctypes.CDLL("/usr/lib/libSystem.B.dylib")
    failed = library.proc_pid_rusage(ctypes.c_int(pid), _RUSAGE_INFO_V0, ctypes.byref(buffer))
    return None if failed else phys_footprint_in(buffer.raw)


def phys_footprint_in(raw: bytes) -> int:
    """Return ``ri_phys_footprint`` from a ``struct rusage_info_v0`` as the kernel fills it."""
    start = _UUID_BYTES + _FOOTPRINT_COUNTER * 8
    return int.from_bytes(raw[start : start + 8], sys.byteorder)
