"""How much of the process's data limit a CPU step uses, by the kernel's peak counter."""

from __future__ import annotations

import sys
from typing import NamedTuple

from mpskit.system.heap import trim_heap
from mpskit.system.limits import data_limit
from mpskit.system.memory import restart_peak, status_bytes

__all__ = ["CpuUse"]


class CpuUse(NamedTuple):
    """The process's memory before a step, in bytes.

    The limit counts mapped memory, for which the kernel keeps no peak. It keeps one for resident
    memory, which includes every written tensor, so a step needs the growth of the resident peak.
    Memory that the heap keeps after a step stays mapped and is no room for the next step's tensors.

    Attributes:
        room: the soft ``RLIMIT_DATA`` less what is mapped.
        resident: the process's resident size.
    """

    room: int
    resident: int

    @classmethod
    def now(cls) -> CpuUse | None:
        """Read the figures and reset the peak; None without a limit or a peak (Linux only)."""
        if not sys.platform.startswith("linux"):
            return None
        limit, mapped = data_limit().soft, status_bytes("VmData")
        if limit is None or mapped is None:
            return None
        trim_heap()  # else a step's use of the heap's free pages would not be seen
        if not restart_peak():
            return None
        resident = status_bytes("VmRSS")
        return None if resident is None else cls(max(0, limit - mapped), resident)

    def needed(self) -> int | None:
        """Return how far the process has grown at its peak since then."""
        peak = status_bytes("VmHWM")
        return None if peak is None else max(0, peak - self.resident)
