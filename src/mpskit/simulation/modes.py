"""The two layers that belong to one thread: the handler of operators and the function mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mpskit.dispatch.intercept import intercepting
from mpskit.simulation.bridge import Bridge
from mpskit.simulation.core import Simulation, ThreadState
from mpskit.simulation.dispatch import Dispatch
from mpskit.simulation.functions import FunctionMode

__all__ = ["modes"]


@contextlib.contextmanager
def modes(simulation: Simulation) -> Iterator[None]:
    """Run the block with new layers on this thread."""
    state = ThreadState()
    dispatch = Dispatch(simulation, state)
    before = simulation.enter_thread(state)
    try:
        with intercepting(dispatch), FunctionMode(simulation, state):
            state.bridge = Bridge(dispatch)
            try:
                yield
            finally:
                state.bridge.close()
    finally:
        simulation.enter_thread(before)
