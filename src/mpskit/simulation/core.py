"""The state of one simulation: the machine, its memory, its tagged storages and its rules."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from mpskit.dispatch.autocast import Autocast
    from mpskit.host import Machine
    from mpskit.simulation.memory import Memory
    from mpskit.simulation.operators import Bridge
    from mpskit.simulation.rng import Randomness
    from mpskit.simulation.rules import Rules
    from mpskit.simulation.tags import Tags

__all__ = ["CPU", "MPS", "RngMode", "Simulation", "ThreadState", "asks_mps", "device_of"]

RngMode = Literal["cpu", "separate"]
CPU = torch.device("cpu")
MPS = torch.device("mps", 0)


def _raised(error: Exception, op: str) -> None:  # noqa: ARG001 - what a rehearsal would write down
    raise error


@dataclasses.dataclass(slots=True, eq=False)
class Simulation:
    """Everything the patches and modes of one ``with simulate(...)`` share.

    Attributes:
        usable: torch can use the GPU (not on an Intel Mac or under Rosetta).
        pins: this torch makes pinned tensors on a Mac.
        handler: makes a thread's handler of operators; None for that of real numbers.
        refuse: gets each error that a Mac raises and the operator it is about. Where it returns
            instead of raising, the run goes on as if the script had been right.
        closed: the simulation has ended; modes that are still on do nothing.
    """

    machine: Machine
    torch_version: str
    usable: bool
    pins: bool
    memory: Memory
    tags: Tags
    rules: Rules
    randomness: Randomness
    autocast: Autocast
    handler: Callable[[Simulation, ThreadState], Any] | None = None
    refuse: Callable[[Exception, str], None] = _raised
    closed: bool = False
    _local: threading.local = dataclasses.field(default_factory=threading.local)

    def state(self) -> ThreadState:
        """Return this thread's state; a new one where no modes are on."""
        found: ThreadState | None = getattr(self._local, "state", None)
        return found if found is not None else ThreadState()

    def enter_thread(self, state: ThreadState | None) -> ThreadState | None:
        """Set this thread's state and return what it was."""
        before: ThreadState | None = getattr(self._local, "state", None)
        self._local.state = state
        return before


class ThreadState:
    """State shared by the two modes of one thread.

    Attributes:
        call: arguments of the C++ function that the function mode is inside of; None between.
        target: the device that a transfer is moving to; None outside transfers.
        bridge: the handler as a mode, for users' modes and subclasses; None outside.
    """

    __slots__ = ("bridge", "call", "target")

    def __init__(self) -> None:
        self.call: tuple[tuple[object, ...], dict[str, object]] | None = None
        self.target: torch.device | None = None
        self.bridge: Bridge | None = None


def asks_mps(device: object) -> bool:
    """Return whether a device argument names the simulated device."""
    if device is None:
        return False
    if isinstance(device, str):
        return device == "mps" or device.startswith("mps:")
    return isinstance(device, torch.device) and device.type == "mps"


def device_of(given: Any) -> Any:
    """Return a device argument, with an integer read as an accelerator's index, as torch does.

    Source: deviceFromLong in torch/csrc/utils/python_arg_parser.h.
    """
    return torch.device("mps", given) if type(given) is int else given
