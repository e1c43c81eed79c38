"""The optimizer of a traced step: made for it, or the caller's own and given back unchanged."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import unbacked_tensor
from mpskit.errors import ArgumentTypeError
from mpskit.estimate.trace.storage_log import Ledger

__all__ = ["borrowed"]


@contextlib.contextmanager
def borrowed(optimizer: Any, model: torch.nn.Module, ledger: Ledger) -> Iterator[Any]:
    """Yield the optimizer that the step uses; None for none.

    Args:
        optimizer: None, a class or callable on the trainable parameters, or an instance.
        model: the model, already exchanged.
        ledger: where the state that an instance already has is recorded.

    Raises:
        ArgumentTypeError: it is none of these.
    """
    if optimizer is None:
        yield None
    elif isinstance(optimizer, torch.optim.Optimizer):
        with _exchanged(optimizer, ledger):
            yield optimizer
    elif callable(optimizer):
        yield optimizer([p for p in model.parameters() if p.requires_grad])
    else:
        raise ArgumentTypeError(
            "an optimizer is a class, a callable on the parameters, an instance or None, "
            f"not {type(optimizer).__name__}",
            given=optimizer,
        )


@contextlib.contextmanager
def _exchanged(optimizer: torch.optim.Optimizer, ledger: Ledger) -> Iterator[None]:
    """Give an instance other state and groups to work on."""
    kept = dict(vars(optimizer))
    state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
    for parameter, values in optimizer.state.items():
        state[parameter] = {name: _twin(value, ledger) for name, value in values.items()}
    optimizer.state = state
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(kept)


def _twin(value: Any, ledger: Ledger) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    if value.numel() == 1:
        twin = value.detach().to("cpu", copy=True)
    else:
        nbytes = value.numel() * value.element_size()
        twin = unbacked_tensor(value.shape, value.stride(), value.dtype, nbytes)
    ledger.add(twin.untyped_storage(), "optimizer")
    return twin
