"""Real steps of a model on a device: on a copy, so that the caller's model stays as it is."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from mpskit._base.arguments import check_seconds
from mpskit.backends.precisions import PrecisionLike, precision_of
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.api import TrainingStep, autocast_on
from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.trace.optimizers import optimizer_class
from mpskit.estimate.trace.steps import call_model, default_loss
from mpskit.speed.timing import time_step

__all__ = ["cpu_seconds", "step_on"]


def cpu_seconds(model: Any, batch: Any, *, seconds: float, **options: Any) -> float:
    """Return the median seconds of a warmed step on the CPU; the options are those of `step_on`.

    Raises:
        ArgumentError: ``seconds`` is not above 0, or the optimizer is an instance.
        ArgumentTypeError: the model is none, or cannot be copied; ``seconds`` is no number.
        Whatever the step raises.
    """
    check_seconds("seconds", seconds)
    return time_step(step_on("cpu", model, batch, **options), "cpu", seconds=seconds).median


def step_on(
    device: str,
    model: Any,
    batch: Any,
    *,
    step: Callable[[Any, Any], Any] | None = None,
    train_step: Callable[[Any, Any, Any], Any] | None = None,
    optimizer: Any = "AdamW",
    precision: PrecisionLike = "fp32",
    accumulate: int = 1,
    training: bool = True,
) -> Callable[[], None]:
    """Return a step to be run on ``device``, on copies of the model and the batch.

    Args:
        device: where it runs.
        model: a module (a copy is used), a class, or a callable that makes one.
        batch: tensors (copies are used) or ``TensorSpec``, which get random numbers.
        step: as for :func:`mpskit.estimate_training_memory`.
        train_step: as there.
        optimizer: a class, its name in ``torch.optim``, a callable on the parameters, or None. An
            instance belongs to the caller's parameters and is refused.
        precision: as there.
        accumulate: as there.
        training: False calls the model without gradients.

    Raises:
        ArgumentTypeError: the model is none, or cannot be copied.
        ArgumentError: the optimizer is an instance.
    """
    chosen = optimizer_class(optimizer)
    if training and isinstance(chosen, torch.optim.Optimizer):
        raise ArgumentError(
            "an optimizer that exists holds the caller's own parameters: give its class, or a "
            "callable that makes one of the parameters",
            given=optimizer,
        )
    kind = precision_of(precision)
    module = _copied(model).to(device, kind.weights if training else None)
    data = map_tensors(batch, functools.partial(_real, device=device, dtype=kind.weights))
    if not training:
        return functools.partial(_call, step or call_model, module, data)
    made = None if chosen is None else chosen([p for p in module.parameters() if p.requires_grad])
    if train_step is not None:
        return functools.partial(train_step, module, data, made)
    kind_of_device = torch.device(device).type
    autocast = functools.partial(autocast_on, kind_of_device, kind.autocast)
    return functools.partial(
        TrainingStep(step or default_loss, made, autocast, accumulate), module, data
    )


def _call(call: Callable[[Any, Any], Any], module: torch.nn.Module, batch: Any) -> None:
    with torch.no_grad():
        call(module, batch)


def _copied(model: Any) -> torch.nn.Module:
    made = None
    if isinstance(model, torch.nn.Module):
        try:
            made = copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise ArgumentTypeError(
                f"{type(model).__name__} cannot be copied ({error}): give a callable that makes it",
                given=model,
            ) from error
    elif callable(model):
        made = model()
    if not isinstance(made, torch.nn.Module):
        raise ArgumentTypeError(
            f"a model is an nn.Module or a callable that makes one, not {type(model).__name__}",
            given=model,
        )
    return made


def _real(item: Any, *, device: str, dtype: torch.dtype | None) -> torch.Tensor:
    if not isinstance(item, TensorSpec):
        kept = dtype if dtype is not None and item.is_floating_point() else item.dtype
        return torch.as_tensor(item.detach().to(device, kept, copy=True))
    wanted = item.torch_dtype()
    if wanted.is_floating_point or wanted.is_complex:
        cast = dtype if dtype is not None and wanted.is_floating_point else wanted
        return torch.randn(item.shape).to(device, cast)
    return torch.full(item.shape, item.fill, dtype=wanted, device=device)
