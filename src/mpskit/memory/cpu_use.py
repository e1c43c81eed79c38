"""What a step on the CPU takes of the process's data limit, by the kernel's own peak."""

from __future__ import annotations

import sys
from typing import NamedTuple

from mpskit.system.heap import trim_heap
from mpskit.system.limits import data_limit
from mpskit.system.memory import restart_peak, status_bytes

__all__ = ["CpuUse"]


class CpuUse(NamedTuple):
    """The process before a step, in bytes.

    The limit counts what is mapped, of which the kernel keeps no peak. It does of what is resident,
    and a tensor that is written is, so a step needs what the resident peak grows by. What the heap
    keeps after a step stays mapped, and is no room for the tensors of the next.

    Attributes:
        room: what the soft ``RLIMIT_DATA`` leaves beside what is mapped.
        resident: what is resident of the process.
    """

    room: int
    resident: int

    @classmethod
    def now(cls) -> CpuUse | None:
        """Look, and let the peak start anew; None where there is no limit or no peak (Linux)."""
        if not sys.platform.startswith("linux"):
            return None
        limit, mapped = data_limit().soft, status_bytes("VmData")
        if limit is None or mapped is None:
            return None
        trim_heap()  # or what a step takes of its free pages would not be seen
        if not restart_peak():
            return None
        resident = status_bytes("VmRSS")
        return None if resident is None else cls(max(0, limit - mapped), resident)

    def needed(self) -> int | None:
        """Return by how much the process was larger at most since then."""
        peak = status_bytes("VmHWM")
        return None if peak is None else max(0, peak - self.resident)
