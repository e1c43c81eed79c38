"""The step that is traced when the caller gives none, and how a caller's own is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mpskit.dispatch.nested import tensors_of
from mpskit.errors import EstimateError

__all__ = ["call_model", "decode", "default_loss", "is_training", "loss_of"]


def is_training(model: torch.nn.Module) -> bool:
    """Return whether a step of the model computes gradients.

    One in evaluation mode is only called, and so is one without a parameter to train.
    """
    return model.training and any(p.requires_grad for p in model.parameters())


def call_model(model: torch.nn.Module, batch: Any) -> Any:
    """Call a model with a batch as people do: mappings by name, tuples by position."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, list | tuple):
        return model(*batch)
    return model(batch)


def decode(count: int) -> Callable[[torch.nn.Module, Any], Any]:
    """Return the step that decodes ``count`` tokens greedily with the model's key-value cache.

    Raises (when called):
        EstimateError: the model has no ``generate`` method.
    """

    def step(model: torch.nn.Module, batch: Any) -> Any:
        generate = getattr(model, "generate", None)
        if generate is None:
            raise EstimateError(
                f"{type(model).__name__} has no generate(): give step=, your own decoding loop",
                given=model,
            )
        inputs = batch if isinstance(batch, Mapping) else {"inputs": batch}
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return generate(**inputs, **options)

    return step


def default_loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Return the loss of a batch.

    A pair for a model that takes one input is (input, target): cross entropy for integer targets,
    mean squared error for others. Otherwise the model is called with the whole batch, and the
    loss is what it calls so (``.loss``, ``["loss"]``), its scalar result, or the mean of its
    results.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and _takes_one(model):
        return _supervised(_first_tensor(model(batch[0])), batch[1])
    return loss_of(call_model(model, batch))


def loss_of(result: Any) -> torch.Tensor:
    """Return the loss that a model's result stands for.

    Raises:
        EstimateError: there is no floating-point tensor with a gradient in it.
    """
    named = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
    if isinstance(named, torch.Tensor):
        return named
    tensors = [t for t in tensors_of(result) if t.is_floating_point() and t.requires_grad]
    if not tensors:
        raise EstimateError(
            f"the model returned {type(result).__name__} without a loss or a tensor that depends "
            "on its parameters: give step=, a function of (model, batch) that returns the loss",
            given=result,
        )
    if tensors[0].numel() == 1:
        return tensors[0]
    return sum((t.mean() for t in tensors[1:]), tensors[0].mean())


def _supervised(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    functional = torch.nn.functional
    if target.is_floating_point():
        return functional.mse_loss(output, target)
    if output.dim() > 2 and output.shape[:-1] == target.shape:  # a sequence, classes last
        output, target = output.flatten(0, -2), target.flatten()
    return functional.cross_entropy(output, target)


def _takes_one(model: torch.nn.Module) -> bool:
    """Return whether a model's forward takes exactly one input."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    kinds = {p.kind for p in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in _POSITIONAL]
    return len(needed) == 1


_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _first_tensor(result: Any) -> torch.Tensor:
    logits = getattr(result, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else next(tensors_of(result))
