"""Threads that start inside a simulation are inside it too: modes belong to one thread."""

from __future__ import annotations

import threading
from typing import Any

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import Simulation
from mpskit.simulation.modes import modes

__all__ = ["install"]


def install(simulation: Simulation, patches: Patches) -> None:
    """Make every new thread enter modes of its own, whatever its class does in ``run``."""
    original: Any = vars(threading.Thread)["_bootstrap_inner"]

    def _bootstrap_inner(self: threading.Thread) -> None:
        with modes(simulation):
            original(self)

    patches.set(threading.Thread, "_bootstrap_inner", _bootstrap_inner)
