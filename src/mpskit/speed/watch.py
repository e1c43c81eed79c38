"""Watches one step: what it launches, what it reads back, where it waits, and on which line.

Operators are seen by a ``TorchDispatchMode``, above autocast's casts and below autograd, so that a
real device and a simulated one look alike.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit._base.user_code import own_place, shown_place
from mpskit.backends.memory import cache_owners
from mpskit.dispatch.intercept import take_off
from mpskit.dispatch.nested import tensors_in
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.op_schema import OpSchema
from mpskit.dispatch.patches import Patches

__all__ = ["Wait", "Watched", "wait_of", "watch", "watch_cache", "watch_printing"]

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})


class Wait(StrEnum):
    """What makes the host wait for the device."""

    VALUE = "a value is read (.item(), bool(tensor), float(tensor))"
    COPY = "a tensor is copied to the CPU (.cpu(), .to('cpu'))"
    SHAPE = "an operator's result has a shape that depends on values (nonzero, a mask as index)"
    PRINT = "a tensor is printed"
    CACHE = "the cache is emptied"


@dataclass
class Watched:
    """What happened in one step.

    Attributes:
        counts: of its operators.
        waits: (what, ``file:line``) -> how often; ``""`` where no line is the user's own.
        fallbacks: (operator, ``file:line``) -> how often it ran on the CPU for want of a kernel.
        autocast: whether autocast was on at some time.
        casts: launches that only convert between floating-point types.
        loader_seconds: spent waiting for a ``DataLoader``.
        shapes: a number that stands for the shapes of all operators.
    """

    counts: OpCounts = field(default_factory=OpCounts)
    waits: Counter[tuple[Wait, str]] = field(default_factory=Counter)
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    autocast: bool = False
    casts: int = 0
    loader_seconds: float = 0.0
    shapes: int = 0

    def wait(self, wait: Wait) -> None:
        """Count that the host waits, at the user's line that runs."""
        self.waits[wait, _line()] += 1


def watch(
    step: Callable[[], Any], device: str, *, missing: Callable[[Any], bool] = lambda _: False
) -> Watched:
    """Run a step once and return what happened in it.

    Args:
        step: without arguments.
        device: whose waits count.
        missing: whether the device has no kernel for an operator.

    Raises:
        Whatever the step raises.
    """
    found = Watched()

    def run(patches: Patches) -> None:
        watching_loader(patches, found)
        watch_printing(patches, found.wait, device)
        watch_cache(patches, found.wait)
        _watch_autocast(patches, found)
        mode = _Mode(found, torch.device(device).type, missing)
        patches.on_exit(functools.partial(take_off, mode))
        with mode:
            step()

    Patches.around(run)
    return found


class _Mode(TorchDispatchMode):
    def __init__(self, found: Watched, kind: str, missing: Callable[[Any], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types there
        self._found, self._kind, self._missing = found, kind, missing
        self._schemas: dict[Any, OpSchema] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = self._schemas.get(func)
        if schema is None:
            schema = self._schemas[func] = OpSchema.of(func)
        self._note(func, schema, args, kwargs, result)
        return result

    def _note(self, func: Any, schema: OpSchema, args: Any, kwargs: Any, result: Any) -> None:
        given = list(tensors_in((*args, *kwargs.values())))
        made = result if isinstance(result, list | tuple) else (result,)
        if not any(t.device.type == self._kind for t in (*given, *tensors_in(made))):
            return
        found = self._found
        found.counts.add(func, schema, args, kwargs, result)
        found.shapes = hash((found.shapes, *(tuple(t.shape) for t in given)))
        found.casts += _is_cast(schema, given, made)
        wait = wait_of(schema, self._kind, given, made)
        if wait is not None:
            found.wait(wait)
        if self._missing(func):
            found.fallbacks[schema.name, _line()] += 1


def wait_of(schema: OpSchema, kind: str, given: list[Any], made: Any) -> Wait | None:
    """Return what an operator makes the host wait for.

    Args:
        schema: of the operator.
        kind: of the device that is waited for.
        given: the tensors that the operator got.
        made: what it returned.
    """
    on_device = bool(given) and any(t.device.type == kind for t in given)
    if kind == "cpu" or not on_device:
        return None
    if schema.route == "item":
        return Wait.VALUE
    if schema.route == "dynamic":
        return Wait.SHAPE if any(t.dtype in {torch.bool, torch.uint8} for t in given) else None
    left = any(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in made)
    return Wait.COPY if left and schema.name in {"_to_copy", "copy_"} else None


def _is_cast(schema: OpSchema, given: list[Any], made: Any) -> bool:
    if schema.name != "_to_copy" or len(given) != 1 or not isinstance(made[0], torch.Tensor):
        return False
    before, after = given[0].dtype, made[0].dtype
    return before != after and {before, after} <= _FLOATS


def watching_loader(patches: Patches, found: Watched) -> None:
    """Add up on this thread what is spent waiting for batches."""
    loader: Any = importlib.import_module("torch.utils.data.dataloader")

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def following(iterator: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(iterator)
            finally:
                found.loader_seconds += time.perf_counter() - start

        return following

    patches.bind(loader._BaseDataLoaderIter, "__next__", timed)


def watch_printing(patches: Patches, met: Callable[[Wait], object], device: str) -> None:
    """Call ``met`` wherever this thread prints a tensor of the device."""
    kind = torch.device(device).type

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def written(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if kind != "cpu" and tensor.device.type == kind:
                met(Wait.PRINT)
            return call(tensor, *args, **kwargs)

        return written

    patches.bind(torch.Tensor, "__repr__", counted)


def watch_cache(patches: Patches, met: Callable[[Wait], object]) -> None:
    """Call ``met`` wherever this thread empties the cache."""

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def emptied(*args: Any, **kwargs: Any) -> Any:
            met(Wait.CACHE)
            return call(*args, **kwargs)

        return emptied

    for owner in cache_owners():
        patches.bind(owner, "empty_cache", counted)


def _watch_autocast(patches: Patches, found: Watched) -> None:
    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def entered(region: Any) -> Any:
            found.autocast = found.autocast or bool(region._enabled)
            return call(region)

        return entered

    patches.bind(torch.autocast, "__enter__", noted)


def _line() -> str:
    place = own_place(sys._getframe(1))
    return "" if place is None else shown_place(*place)
