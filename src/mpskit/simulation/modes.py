"""The two modes of one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mpskit.simulation.core import Simulation, ThreadState
from mpskit.simulation.dispatch import DispatchMode
from mpskit.simulation.functions import FunctionMode

__all__ = ["modes"]


@contextlib.contextmanager
def modes(simulation: Simulation) -> Iterator[None]:
    """Run the block with new modes on this thread."""
    state = ThreadState()
    before = simulation.enter_thread(state)
    try:
        with DispatchMode(simulation, state), FunctionMode(simulation, state):
            yield
    finally:
        simulation.enter_thread(before)
