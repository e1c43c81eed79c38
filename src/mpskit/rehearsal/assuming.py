"""Answers operators without numbers, and goes on where an estimate would give up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import dataless_storage, is_dataless
from mpskit.dispatch.patches import Patches
from mpskit.errors import EstimateError
from mpskit.estimate.trace.control_flow import answer_without_raise, reading_frame
from mpskit.estimate.trace.guards import described
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.estimate.trace.tracer import Tracer
from mpskit.estimate.trace.unknown_values import Reads
from mpskit.rehearsal.findings import Findings, Kind, spot_of
from mpskit.simulation.tags import Tags

__all__ = ["Assumed", "ScriptLog", "ScriptTracer", "install"]

# A loop that waits for a number to change never ends on an assumed one.
_MOST_READS = 20_000
_MOST_BYTES = 64 << 20  # of an array of assumed numbers
_WHAT_TO_DO = (
    "its result depends on numbers that a rehearsal does not compute. Rehearse with a flag that "
    "leaves this out, or run it on the simulated Mac (mpskit simulate)"
)


class ScriptLog(StorageLog):
    """Remembers what the living storages hold, and keeps no record of the others."""

    def _record(self, size: int, kind: str | None) -> int:  # noqa: ARG002
        return 0

    def keep_activations(self) -> None:
        """Leave what lives as it is: no kinds are told apart here."""

    def classify(self, storage: torch.UntypedStorage, kind: str) -> None:
        """Leave a storage as it is, for the same reason."""

    def _freed(self, reference: Any) -> None:
        self.unknown.discard(reference.key)
        self.numbers.pop(reference.key, None)


@dataclass
class Assumed(Reads):
    """Answers every read of an unknown value, and says so once for each line."""

    findings: Findings | None = None
    _step: int = field(default=-1)

    def scalar(self, name: str, tensor: torch.Tensor) -> bool | float:
        """Return 1.0 for a float, 1 for an integer, and for a truth value what raises nothing.

        Raises:
            EstimateError: one step reads thousands of values: it waits for one to change.
        """
        self._counted(name, tensor)
        if tensor.dtype is torch.bool:
            frame = reading_frame(sys._getframe())
            answer = frame is not None and bool(answer_without_raise(frame))
            self.note(f"a condition on numbers that are not computed was taken for {answer}")
            return answer
        number = 1.0 if tensor.dtype.is_floating_point else 1
        self.note(f"a number that is read was taken for {number}")
        return number

    def finite(self, name: str, number: bool | float) -> bool | float:  # noqa: ARG002
        """Return a number that follows from floats being finite."""
        self.note("numbers that are checked were taken for finite")
        return number

    def note(self, text: str) -> None:
        """Write down what was assumed, once for each line."""
        if self.findings is not None:
            self.findings.add(Kind.ASSUMED, "", text, spot=spot_of(sys._getframe(1)))

    def refusal(self, name: str, given: Any = None) -> EstimateError:
        """Return the error for an operator whose result cannot be known."""
        return self.unsupported(name, _WHAT_TO_DO, given)

    def unsupported(self, name: str, what: str, given: Any = None) -> EstimateError:
        """Return the error for something that the tracer does not have."""
        spot = spot_of(sys._getframe(1))
        line = f" at {spot.file}:{spot.line}" if spot.file else ""
        return EstimateError(f"cannot rehearse {name}{line}: {what}", given=given)

    def _counted(self, name: str, tensor: torch.Tensor) -> None:
        if self.where.step != self._step:
            self._step, self.count = self.where.step, 0
        self.count += 1
        if self.count > _MOST_READS:
            raise self.refusal(name, tensor.shape)


class ScriptTracer(Tracer):
    """Also answers whether two tensors are equal: they are taken to be."""

    def item(self, func: Any, facts: Any, args: Any, kwargs: Any) -> Any:
        """Read a value, or assume one."""
        if facts.name in {"equal", "is_nonzero"} and not self._all_known(args, kwargs):
            if isinstance(self.reads, Assumed):
                self.reads.note("tensors that are compared were taken for equal")
            return True
        return super().item(func, facts, args, kwargs)


def install(patches: Patches, tags: Tags, reads: Assumed, copied: Callable[[str], object]) -> None:
    """Keep Python from reading and copying memory that is not there, on every thread.

    Args:
        patches: undo it.
        tags: tell which tensors are on the Mac.
        reads: says what was assumed.
        copied: called with the name of a method that copies from the Mac.
    """
    tensor, storage = torch.Tensor, torch.UntypedStorage
    patches.derive(tensor, "__repr__", described)
    patches.derive(tensor, "numpy", lambda call: _numpy(call, tags, reads))
    patches.derive(tensor, "tolist", lambda call: _tolist(call, tags, reads, copied))
    patches.derive(storage, "clone", lambda call: _cloned(call, tags))


def _numpy(call: Callable[..., Any], tags: Tags, reads: Assumed) -> Callable[..., Any]:
    def numpy(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.layout is not torch.strided or tags.has(self) or not is_dataless(self):
            return call(self, *args, **kwargs)
        reads.note("an array that is read was taken for ones")
        return _ones(self)

    return numpy


def _ones(tensor: torch.Tensor) -> Any:
    """Return an array of ones; a large one has a single element in memory and is read-only."""
    one = torch.ones((), dtype=tensor.dtype, device="cpu")
    if tensor.numel() * tensor.itemsize <= _MOST_BYTES:
        import numpy as np

        return np.ones(tuple(tensor.shape), dtype=torch._C.TensorBase.numpy(one).dtype)
    import numpy as np

    return np.broadcast_to(torch._C.TensorBase.numpy(one), tuple(tensor.shape))


def _tolist(
    call: Callable[..., Any], tags: Tags, reads: Assumed, copied: Callable[[str], object]
) -> Callable[..., Any]:
    def tolist(self: torch.Tensor) -> Any:
        if self.dim() and tags.has(self):
            copied("tolist")
        if self.layout is not torch.strided or not is_dataless(self):
            with torch._C.DisableTorchFunction():  # with a mode on, torch comes back here
                return call(self)
        reads.note("a list that is read was taken for ones")
        return _nested(tuple(self.shape), 1.0 if self.dtype.is_floating_point else 1)

    return tolist


def _nested(shape: tuple[int, ...], number: float) -> Any:
    return [_nested(shape[1:], number) for _ in range(shape[0])] if shape else number


def _cloned(call: Callable[..., Any], tags: Tags) -> Callable[..., Any]:
    """Copy no bytes of a storage without memory (``copy.deepcopy`` of a model)."""

    def clone(self: torch.UntypedStorage) -> Any:
        if not is_dataless(self):
            return call(self)
        copy = dataless_storage(self.nbytes())
        if self._cdata in tags.live:
            tags.add_storage(copy)
        return copy

    return clone
