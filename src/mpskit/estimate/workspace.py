"""What CPU kernels take for themselves while they run, and give back: no dispatch shows it."""

from __future__ import annotations

from collections.abc import Mapping

from mpskit.estimate.trace import Charge

__all__ = ["cpu_charges"]


def cpu_charges() -> Mapping[str, Charge]:
    return {}
