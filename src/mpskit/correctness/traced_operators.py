"""Lists the operators of a model's step, traced on tensors without memory as an estimate is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mpskit.correctness.issue_table import issue_table
from mpskit.correctness.operators import Operand, OpUse
from mpskit.dispatch.intercept import current, intercepting
from mpskit.dispatch.patches import Patches
from mpskit.estimate.api import trace_training
from mpskit.estimate.trace.run import build_model
from mpskit.estimate.trace.steps import call_model, default_loss, is_training

__all__ = ["operators_of", "record_use", "watch_calls"]

# Where the calls are found that the dispatcher shows only in parts: linear comes down to addmm.
_core: Any = torch._C
_OWNERS: tuple[Any, ...] = (torch, torch.nn.functional, torch._VF, _core._nn, torch.Tensor)
# A function's name, where it is not the operator's.
_NAMES = {"grid_sample": "grid_sampler"}
_PLACES = {"input": 0, "query": 0, "weight": 1, "key": 1, "value": 2, "bias": 2, "attn_mask": 3}
_PLAIN = (bool, int, float, str)


def operators_of(model: Any, batch: Any) -> frozenset[OpUse]:
    """Trace one step of a model and return how it calls which operators.

    Args:
        model: a module, a class, or a callable that makes one; in training mode its gradients are
            traced too.
        batch: tensors or ``TensorSpec``, nested.

    Raises:
        EstimateError: the step cannot be traced.
    """
    module = build_model(model).module
    found: set[OpUse] = set()
    recorder = functools.partial(record_use, found, compiled=hasattr(model, "_orig_mod"))

    def step(model: torch.nn.Module, batch: Any, _: Any) -> None:
        with Patches() as patches:
            watch_calls(patches, recorder)
            if not is_training(model):
                with intercepting(_Passing(recorder)), torch.no_grad():
                    call_model(model, batch)
                return
            with intercepting(_Passing(recorder)):
                default_loss(model, batch).backward()

    trace_training(module, batch, train_step=step, optimizer=None, steps=1, device="mps")
    return frozenset(found)


Recorder = Callable[[str, tuple[Any, ...], dict[str, Any]], None]


class _Passing:
    """Notes each operator and hands it on to the trace."""

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._below = current()

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note one operator and let the trace answer it."""
        self._record(func._schema.name.removeprefix("aten::"), args, kwargs)
        if self._below is None:  # a torch whose trace is a mode, which is asked next
            return func(*args, **kwargs)
        return self._below.answer(func, args, kwargs)

    def decomposed(self, func: Any) -> bool:
        """Return what the trace says."""
        return self._below is not None and self._below.decomposed(func)


def watch_calls(patches: Patches, record: Recorder) -> None:
    """Note calls of the table's operators where Python makes them, whole and with their strides."""
    names = {op for issue in issue_table() for op in issue.ops} | set(_NAMES)
    for owner in _OWNERS:
        for name in sorted(names):
            if callable(vars(owner).get(name, getattr(owner, name, None))):
                patches.bind(owner, name, functools.partial(_noted, _NAMES.get(name, name), record))


def _noted(name: str, record: Recorder, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noted(*args: Any, **kwargs: Any) -> Any:
        record(name, args, kwargs)
        return call(*args, **kwargs)

    return noted


def record_use(
    found: set[OpUse], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, compiled: bool
) -> None:
    """Add one call of an operator, or of the function of its name, to what was found."""
    placed = dict(enumerate(args))
    placed |= {_PLACES[key]: value for key, value in kwargs.items() if key in _PLACES}
    last = max(placed, default=-1)
    values = [placed.get(at) for at in range(last + 1)]
    given = [(str(at), value) for at, value in enumerate(args)] + list(kwargs.items())
    operands = tuple(_operand(value) for value in values)
    training = torch.is_grad_enabled() and any(one.requires_grad for one in _all(values))
    options = tuple((key, value) for key, value in given if isinstance(value, _PLAIN))
    found.add(OpUse(name, operands, options, training, compiled))


def _operand(value: Any) -> Operand | None:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    name = str(value.dtype).removeprefix("torch.")
    sizes, strides = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
    return Operand(sizes, strides, name, value.dtype.itemsize, value.requires_grad)


def _all(values: list[Any]) -> list[Operand]:
    """Return the tensors among arguments, also those in lists (the weights of an LSTM)."""
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [found for found in map(_operand, flat) if found is not None]
