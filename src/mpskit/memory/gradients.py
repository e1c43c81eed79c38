"""Detects and undoes what a failed step leaves in ``.grad``.

A step that runs out of memory in its backward pass has already added to some gradients. If the next
try adds to them again, the sum is silently wrong.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["Changes", "Gradients"]


class _Seen(NamedTuple):
    """A gradient's earlier state: a weak reference to its storage, and its version counter."""

    storage: Any
    version: int


class Gradients:
    """The gradients of all leaf tensors at one moment.

    Searching for the tensors takes about 10 ms in a process of 200,000 objects; ``leaves`` from an
    earlier search avoids it.
    """

    def __init__(self, leaves: Iterable[weakref.ref[torch.Tensor]] | None = None) -> None:
        known = _alive(leaves) if leaves is not None else _leaves()
        self.leaves: list[weakref.ref[torch.Tensor]] = []
        self._before: dict[int, _Seen] = {}
        for leaf in known:
            self.leaves.append(weakref.ref(leaf))
            if leaf.grad is not None:
                self._before[id(leaf)] = _seen(leaf.grad)

    @property
    def are_none(self) -> bool:
        """Whether there was no gradient, so that none can be overwritten."""
        return not self._before

    def changes(self) -> Changes:
        """Return the gradients added since, and whether an earlier one was written to."""
        new: list[torch.Tensor] = []
        written = False
        for leaf in _leaves():
            if leaf.grad is None:
                continue
            before, now = self._before.get(id(leaf)), _seen(leaf.grad)
            if before is None or before.storage != now.storage:
                # It may replace a gradient that the step itself dropped.
                new.append(leaf)
            elif before.version != now.version:
                written = True
        return Changes(new, written)


class Changes(NamedTuple):
    """Gradients that a step left.

    Attributes:
        new: the tensors that had no gradient before, or another one.
        written: an earlier gradient was added to, which cannot be undone.
    """

    new: list[torch.Tensor]
    written: bool

    def take_back(self) -> None:
        """Remove the new ones."""
        for leaf in self.new:
            leaf.grad = None


def _seen(grad: torch.Tensor) -> _Seen:
    return _Seen(_Storage(grad), grad._version)


class _Storage:
    """A storage's identity without its memory; a freed one equals no other."""

    def __init__(self, tensor: torch.Tensor) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        self._reference: Any = None
        # Sparse gradients have no storage of their own.
        with suppress(NotImplementedError, RuntimeError):
            self._reference = StorageWeakRef(tensor.untyped_storage())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Storage):
            return NotImplemented
        mine, its = self._reference, other._reference
        if mine is None or its is None:
            return mine is its
        return bool(not mine.expired() and mine.cdata == its.cdata)

    __hash__ = None  # type: ignore[assignment]


def _alive(references: Iterable[weakref.ref[torch.Tensor]]) -> list[torch.Tensor]:
    return [leaf for reference in references if (leaf := reference()) is not None]


def _leaves() -> list[torch.Tensor]:
    """Return every leaf tensor of the process that may have a gradient."""
    if "torch" not in sys.modules:
        return []
    import torch

    # type(), because reading an unknown object's __class__ may run any code.
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    with torch._C.DisableTorchFunctionSubclass():
        return [one for one in tensors if _is_trained_leaf(one)]


def _is_trained_leaf(tensor: torch.Tensor) -> bool:
    try:
        return tensor.is_leaf and tensor.requires_grad
    except RuntimeError:  # torch's undefined tensor, such as one that the collector has cleared
        return False
