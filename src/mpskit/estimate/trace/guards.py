"""What must not happen while a step runs on tensors without memory, and is turned aside.

Values are not read behind the tracer's back (``tolist``, ``numpy``), nothing is compiled, tensors
stay on the CPU whatever device the code names, and autocast for the target casts CPU tensors.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import is_unbacked
from mpskit.estimate.trace.casts import Casting
from mpskit.estimate.trace.unknown_values import Reads

__all__ = ["guarded"]

_READERS = ("tolist", "numpy")
_HERE = frozenset({"cpu", "meta"})


@contextlib.contextmanager
def guarded(reads: Reads, device: str) -> Iterator[None]:
    """Install the guards for one trace, and take them away after.

    Args:
        reads: makes the error for a value that is read.
        device: the target's name.
    """
    with contextlib.ExitStack() as stack:
        for name in _READERS:
            _patch(stack, torch.Tensor, name, _reader(getattr(torch.Tensor, name), name, reads))
        _patch(stack, torch.Tensor, "__repr__", _described(torch.Tensor.__repr__))
        _patch(stack, torch.Tensor, "to", _staying(torch.Tensor.to))
        for name in ("cuda", "xpu"):
            if hasattr(torch.Tensor, name):
                _patch(stack, torch.Tensor, name, lambda self, *_, **__: self)
        _patch(stack, torch, "compile", _not_compiled)
        dynamo = sys.modules.get("torch._dynamo.config")
        if dynamo is not None:
            _patch(stack, dynamo, "disable", True)
        if device != "cpu":
            stack.enter_context(_autocast(stack))
        yield


def _patch(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    if name in vars(owner) or not isinstance(owner, type):
        stack.callback(setattr, owner, name, getattr(owner, name))
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _reader(call: Callable[..., Any], name: str, reads: Reads) -> Callable[..., Any]:
    def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.layout is torch.strided and is_unbacked(self):
            raise reads.refusal(f"Tensor.{name}()", self.shape)
        return call(self, *args, **kwargs)

    return read


def _described(call: Callable[..., str]) -> Callable[..., str]:
    """Return a ``repr`` that does not read what is not there: people print tensors."""

    def describe(self: torch.Tensor, **kwargs: Any) -> str:
        if self.layout is torch.strided and is_unbacked(self):
            return f"tensor(..., size={tuple(self.shape)}, dtype={self.dtype})"
        return call(self, **kwargs)

    return describe


def _staying(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Tensor.to`` that takes every device of the target for the one that is here."""

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args and _elsewhere(args[0]):
            args = ("cpu", *args[1:])
        if _elsewhere(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return call(self, *args, **kwargs)

    return to


def _elsewhere(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return True  # the index of an accelerator
    if isinstance(value, str):
        return value.partition(":")[0] not in _HERE
    return isinstance(value, torch.device) and value.type not in _HERE


def _not_compiled(model: Any = None, **_: Any) -> Any:
    return model if model is not None else lambda function: function


@contextlib.contextmanager
def _autocast(stack: contextlib.ExitStack) -> Iterator[None]:
    """Let ``torch.autocast`` for an accelerator cast as the target does."""
    cls: Any = torch.amp.autocast_mode.autocast
    casting = Casting()
    make, enter, leave = cls.__init__, cls.__enter__, cls.__exit__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        make(self, "mps" if device_type not in _HERE else device_type, *args, **kwargs)

    def start(self: Any) -> Any:
        found = enter(self)
        if self.device == "mps":
            casting.start()
        return found

    def stop(self: Any, *error: Any) -> Any:
        if self.device == "mps":
            casting.stop()
        return leave(self, *error)

    for name, value in (("__init__", init), ("__enter__", start), ("__exit__", stop)):
        _patch(stack, cls, name, value)
    yield
