"""The optimizer of a traced step: made for it, or the caller's own and given back unchanged."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from mpskit._base.arguments import shown
from mpskit.dispatch.dataless_tensors import dataless_tensor
from mpskit.dispatch.patches import Patches
from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError
from mpskit.estimate.trace.model_state import claim, keep_attributes
from mpskit.estimate.trace.storage_log import StorageLog

__all__ = ["borrow", "optimizer_class"]


def optimizer_class(given: Any) -> Any:
    """Return the class of ``torch.optim`` that a name means, in any case; what is no name as it is.

    Raises:
        ArgumentError: ``torch.optim`` has no optimizer of that name.
    """
    if not isinstance(given, str):
        return given
    known = {
        name.lower(): found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    }
    if given.lower() not in known:
        names = ", ".join(sorted(known))
        raise ArgumentError(f"torch.optim has no {shown(given)}: one of {names}", given=given)
    return known[given.lower()]


def borrow(optimizer: Any, model: torch.nn.Module, log: StorageLog, patches: Patches) -> Any:
    """Return the optimizer that the step uses; None for none.

    Args:
        optimizer: None, a class or callable on the trainable parameters, or an instance.
        model: the model, already exchanged.
        log: where the state that an instance already has is recorded.
        patches: give an instance its own state back.

    Raises:
        ArgumentTypeError: it is none of these.
        ArgumentError: the model has no trainable parameters.
        EstimateError: another trace uses the instance, or its steps depend on the loss.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, torch.optim.Optimizer):
        _refuse(optimizer)
        claim(patches, type(optimizer).__name__, [optimizer])
        _exchange(optimizer, log, patches)
        return optimizer
    if callable(optimizer):
        return _made(optimizer, model)
    raise ArgumentTypeError(
        "an optimizer is a class, a callable on the parameters, an instance or None, "
        f"not {type(optimizer).__name__}",
        given=optimizer,
    )


def _made(make: Any, model: torch.nn.Module) -> Any:
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        optimizer = make(parameters)
    except ValueError as error:
        if parameters:
            raise
        raise ArgumentError(
            f"every parameter of {type(model).__name__} is frozen (requires_grad is False): there "
            "is nothing to train. Unfreeze some, or estimate inference "
            "(estimate_inference_memory; --inference on the command line)",
            given=model,
        ) from error
    _refuse(optimizer)
    return optimizer


def _refuse(optimizer: Any) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise EstimateError(
            "LBFGS cannot be estimated: how often it runs the loss and how many vectors it keeps "
            "follow from the values of loss and gradient, which an estimate does not compute. "
            "Estimate SGD in its place, and add about 2 * history_size + 5 times the bytes of the "
            "trainable parameters",
            given=optimizer,
        )


def _exchange(optimizer: torch.optim.Optimizer, log: StorageLog, patches: Patches) -> None:
    """Give an instance other state and groups to work on."""
    keep_attributes(patches, optimizer)
    state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
    for parameter, values in optimizer.state.items():
        state[parameter] = {name: _twin(value, log) for name, value in values.items()}
    optimizer.state = state
    optimizer.param_groups = [
        {**group, "params": list(group["params"])} for group in optimizer.param_groups
    ]


def _twin(value: Any, log: StorageLog) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    if value.numel() == 1:
        twin = value.detach().to("cpu", copy=True)
    else:
        nbytes = value.numel() * value.element_size()
        twin = dataless_tensor(value.shape, value.stride(), value.dtype, nbytes)
    log.add(twin.untyped_storage(), "optimizer")
    return twin
