"""Everything of a simulated Mac that is not torch, in one call."""

from __future__ import annotations

from mpskit.dispatch.patches import Patches
from mpskit.simulation import host_patch
from mpskit.simulation import library_caches as caches
from mpskit.simulation.core import Simulation

__all__ = ["install"]


def install(simulation: Simulation, patches: Patches) -> None:
    """Look like the machine, and let nothing remember the one before."""
    memory = simulation.memory

    def driver_bytes() -> int:
        model = memory.peek()
        return 0 if model is None else model.driver_bytes

    caches.install(patches)
    host_patch.install(simulation.machine, driver_bytes, patches)
