"""Events and streams of the simulated device, on which all work is always complete.

``_Event`` and ``_Stream`` derive from torch's own classes, which they replace, and override every
method that needs a Mac; a test compares the names.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, Self

import torch

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import MPS, Simulation, asks_mps, device_of

__all__ = ["bindings", "install"]

_DEVICE_TYPE = 13  # c10::DeviceType::MPS
_POOL = 32  # kMPSStreamsPerPool in MPSStream.mm; stream 0 is the default and not of the pool


class _Recorded(int):
    """A ``torch.mps.Event``'s number, with the time when it was recorded.

    The number is 0, which torch never releases: an event may outlive the simulated Mac.
    """

    _time: float | None = None


def bindings() -> dict[str, Any]:
    """Return the functions of ``torch._C`` that ``torch.mps.Event`` calls."""
    return {
        "_mps_acquireEvent": lambda _timing=False: _Recorded(),
        "_mps_releaseEvent": lambda _: None,
        "_mps_recordEvent": _record,
        "_mps_waitForEvent": lambda _: None,
        "_mps_synchronizeEvent": lambda _: None,
        "_mps_queryEvent": lambda _: True,
        "_mps_elapsedTimeOfEvents": _elapsed,
    }


def _record(event: Any) -> None:
    event._time = time.perf_counter()


def _elapsed(start: Any, end: Any) -> float:
    if start._time is None or end._time is None:
        raise RuntimeError("Both events must be recorded before calculating elapsed time.")
    return float(end._time - start._time) * 1000


class _Event(torch.Event):
    """``torch.Event(device="mps")``."""

    device = MPS

    def __new__(cls, *, enable_timing: bool = False) -> Self:
        event = super().__new__(cls, "cpu")
        event.enable_timing = enable_timing
        event._time = None
        return event

    enable_timing: bool
    _time: float | None

    def __repr__(self) -> str:
        return f"torch.Event device_type=mps, device_index=0, event_id={self.event_id}"

    def record(self, stream: Any = None) -> None:  # noqa: ARG002 - torch's signature
        _record(self)

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Any) -> float:
        return _elapsed(self, other)

    @classmethod
    def from_ipc_handle(cls, device: Any, ipc_handle: bytes) -> Any:
        raise NotImplementedError("torch.Event ipc is not supported yet, please open an issue")

    def ipc_handle(self) -> bytes:
        raise NotImplementedError("torch.Event ipc is not supported yet, please open an issue")

    event_id = 0


class _Stream(torch.Stream):
    """``torch.Stream(device="mps")`` and ``torch.mps.Stream``: a number in a queue's place."""

    def __new__(cls, stream_id: int = 0) -> Self:
        return super().__new__(cls, stream_id=stream_id, device_index=0, device_type=_DEVICE_TYPE)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    def native_handle(self) -> int:
        raise RuntimeError("Backend doesn't support getting stream native handle.")

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event()
        event.record(self)
        return event

    def __enter__(self) -> Self:
        self._before = _CURRENT.stream
        _CURRENT.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.stream = self._before

    _before: _Stream


class _MpsStream(_Stream):
    """``torch.mps.Stream`` (torch 2.15): one of the pool, or the one with a number."""

    def __new__(cls, stream_id: int = -1) -> Self:
        return super().__new__(cls, _from_pool() if stream_id == -1 else stream_id)

    def __repr__(self) -> str:
        return f"<torch.mps.Stream stream_id={self.stream_id}>"


class _Current(threading.local):
    """The current stream of each thread."""

    def __init__(self) -> None:
        self.stream = _Stream()


_CURRENT = _Current()
_TAKEN = itertools.count()


def _from_pool() -> int:
    return next(_TAKEN) % _POOL + 1


def _select(stream: Any) -> None:
    _CURRENT.stream = _Stream(stream.stream_id)


def install(simulation: Simulation, patches: Patches) -> None:
    """Replace ``torch.Event``, ``torch.Stream`` and, where this torch has them, MPS streams."""
    if not simulation.usable:
        return
    streams = getattr(torch.mps, "streams", None)
    new_stream = (lambda: _Stream(_from_pool())) if streams is not None else _Stream
    for name, make in (("Event", _Event), ("Stream", new_stream)):
        patches.set(torch, name, _substitute(getattr(torch, name), make))
    for module in (torch.mps, streams) if streams is not None else ():
        patches.set(module, "Stream", _MpsStream)
    patches.on_exit(lambda: _select(_Stream()))
    for name in ("_accelerator_getStream", "_mps_getCurrentStream"):
        patches.set(torch._C, name, lambda *_: _CURRENT.stream)
    for name in ("_accelerator_setStream", "_mps_setStream"):
        patches.set(torch._C, name, _select)


def _substitute(original: type, make: Any) -> type:
    class _Meta(type):
        def __call__(cls, device: Any = None, *args: Any, **kwargs: Any) -> Any:
            wanted = torch.device("mps") if device is None else device_of(device)
            if asks_mps(wanted) and not args:
                kwargs.pop("priority", None)
                kwargs.pop("blocking", None)
                kwargs.pop("interprocess", None)
                return make(**kwargs)
            return original(device, *args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, original)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, original)

    return _Meta(original.__name__, (), {"__doc__": original.__doc__})
