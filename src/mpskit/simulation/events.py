"""``torch.mps.Event`` and ``torch.Event``: everything here has happened as soon as it is asked."""

from __future__ import annotations

import itertools
import time
from typing import Any, Self

import torch

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import MPS, Simulation, asks_mps

__all__ = ["Events", "install"]


class Events:
    """The events behind ``torch.mps.Event``: a number each, and the time it was recorded at."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._recorded: dict[int, float] = {}

    def bindings(self) -> dict[str, Any]:
        """Return the functions of ``torch._C`` that ``torch.mps.Event`` calls."""
        return {
            "_mps_acquireEvent": lambda _timing=False: next(self._numbers),
            "_mps_releaseEvent": lambda event: self._recorded.pop(event, None),
            "_mps_recordEvent": self._record,
            "_mps_waitForEvent": lambda _: None,
            "_mps_synchronizeEvent": lambda _: None,
            "_mps_queryEvent": lambda _: True,
            "_mps_elapsedTimeOfEvents": self._elapsed,
        }

    def _record(self, event: int) -> None:
        self._recorded[event] = time.perf_counter()

    def _elapsed(self, start: int, end: int) -> float:
        return (self._recorded[end] - self._recorded[start]) * 1000


class _Event:
    """``torch.Event(device="mps")``."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.device = MPS
        self.enable_timing = enable_timing
        self._time: float | None = None

    def record(self, stream: Any = None) -> None:  # noqa: ARG002 - torch's signature
        self._time = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: _Event) -> float:
        if self._time is None or other._time is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (other._time - self._time) * 1000


class _Stream:
    """``torch.Stream(device="mps")``: there is one."""

    def __init__(self) -> None:
        self.device = MPS
        self.stream_id = 0
        self.device_index = 0
        self.device_type = 13  # c10::DeviceType::MPS

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event()
        event.record(self)
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0


def install(simulation: Simulation, patches: Patches) -> None:
    """Replace ``torch.Event`` and ``torch.Stream``, where this torch has them."""
    if not simulation.usable:
        return
    for name, simulated in (("Event", _Event), ("Stream", _Stream)):
        original = getattr(torch, name, None)
        if isinstance(original, type):
            patches.set(torch, name, _substitute(original, simulated))
    stream = _Stream()
    patches.set(torch._C, "_accelerator_getStream", lambda *_: stream)


def _substitute(original: type, simulated: type) -> type:
    class _Meta(type):
        def __call__(cls, device: Any = None, *args: Any, **kwargs: Any) -> Any:
            wanted = torch.device("mps") if device is None else device
            if asks_mps(wanted) and not args:
                kwargs.pop("priority", None)
                kwargs.pop("blocking", None)
                kwargs.pop("interprocess", None)
                return simulated(**kwargs)
            return original(device, *args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, (original, simulated))

    return _Meta(original.__name__, (), {"__doc__": original.__doc__})
