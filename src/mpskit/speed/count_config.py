"""What a transformer's step computes, counted from its config: shallow traces, added to its depth.

What a model counts grows in a straight line with its layers, since all of a stack but the outermost
are alike. Two traces of few layers, one deeper than the other, tell the line; an encoder-decoder
takes a third.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpskit._base.arguments import wrong_type
from mpskit.backends.precisions import precision_of
from mpskit.dispatch.op_counts import OpCounts
from mpskit.errors import ArgumentError
from mpskit.estimate.api import check_counts
from mpskit.estimate.from_config import Stepped, trace_subject
from mpskit.estimate.reference.config import Lora, Shape, read_lora, read_shape
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.targets import target_for
from mpskit.estimate.trace.optimizers import optimizer_class
from mpskit.speed.count import workload_of
from mpskit.speed.workload import Workload

__all__ = ["workload_from_config"]

_FEW = 3  # the first and the last layer, and one between them


def workload_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    batch_size: int,
    seq_len: int,
    training: bool = True,
    lora: Mapping[str, Any] | int | None = None,
    precision: str = "fp32",
    optimizer: Any = "AdamW",
    accumulate: int = 1,
    checkpointing: bool = False,
    cached_tokens: int = 0,
    device: str = "mps",
) -> Workload:
    """Return what a step of a transformer computes, from its config alone.

    Args:
        config: as for :func:`mpskit.estimate_from_config`.
        batch_size: as there.
        seq_len: as there; 1 without gradients is a step of decoding.
        training: as there.
        lora: as there.
        precision: as there.
        optimizer: as there, by its class or its name in ``torch.optim``.
        accumulate: as there.
        checkpointing: as there.
        cached_tokens: tokens in the key-value cache that the step reads, without gradients.
        device: whose operators are counted: ``mps``, ``cpu`` or ``cuda``.

    Raises:
        ArgumentError: a missing key of the config, an unknown family, a wrong value.
        ArgumentTypeError: an argument of the wrong type.
        EstimateError: the step cannot be traced.
    """
    check_counts(batch_size=batch_size, seq_len=seq_len, accumulate=accumulate)
    for name, value in (("training", training), ("checkpointing", checkpointing)):
        if not isinstance(value, bool):
            raise wrong_type(name, "True or False", value)
    if isinstance(cached_tokens, bool) or not isinstance(cached_tokens, int):
        raise wrong_type("cached_tokens", "an int", cached_tokens)
    if cached_tokens < 0 or (cached_tokens and training):
        why = "no step with gradients reads a cache" if training else "it is a count"
        raise ArgumentError(f"cached_tokens={cached_tokens}: {why}", given=cached_tokens)
    shape = read_shape(config, tokens=seq_len + cached_tokens)
    adapters = read_lora(shape, lora)
    how = Stepped(training, precision, optimizer_class(optimizer), accumulate)
    size = (batch_size, seq_len)

    def counted(layers: tuple[int, ...]) -> tuple[OpCounts, int]:
        return _counted(
            dataclasses.replace(shape, layers=layers), adapters, how, size, checkpointing, device
        )

    few = tuple(min(count, _FEW) for count in shape.layers)
    counts, params = counted(few)
    total = _Sum(counts, params)
    for stack, (all_, traced) in enumerate(zip(shape.layers, few, strict=True)):
        if all_ > traced:
            deeper = tuple(n + (number == stack) for number, n in enumerate(few))
            total.add_layers(*counted(deeper), all_ - traced)
    cache = _cache_bytes(shape, cached_tokens, precision) * batch_size
    found = workload_of(total.counts, recurrent=False, training=training, params=total.params)
    decoding = not training and seq_len == 1
    more: dict[str, Any] = {"bytes_moved": (found.bytes_moved or 0.0) + cache}
    more["op_class"] = "llm_decode" if decoding else "transformer"
    return found.model_copy(update=more)


def _counted(
    shape: Shape,
    lora: Lora | None,
    how: Stepped,
    size: tuple[int, int],
    checkpointing: bool,
    device: str,
) -> tuple[OpCounts, int]:
    """Return the counts of a step, and the parameters, of a model with all its few layers."""
    depth = max(shape.layers)
    subject = build_reference(shape, lora=lora, checkpointing=checkpointing, depth=depth)
    counts = OpCounts()
    trace_subject(subject, how, target_for(device), size, counts)
    return counts, sum(parameter.numel() for parameter in subject.model.parameters())


class _Sum:
    """The counts of a few layers, to which those of more are added."""

    def __init__(self, counts: OpCounts, params: int) -> None:
        self._few, self._few_params = counts, params
        self.counts, self.params = counts.plus(OpCounts(), 0), params

    def add_layers(self, deeper: OpCounts, params: int, layers: int) -> None:
        """Add what ``layers`` more of a stack count, where ``deeper`` has one more than the few."""
        self.counts = self.counts.plus(deeper, layers).plus(self._few, -layers)
        self.params += (params - self._few_params) * layers


def _cache_bytes(shape: Shape, tokens: int, precision: str) -> float:
    """Return the bytes of keys and values that a row's cache of so many tokens has."""
    weights, _ = precision_of(precision)
    itemsize = 4 if weights is None else weights.itemsize
    heads = shape.kv_heads * shape.head_width
    return 2.0 * sum(shape.layers) * heads * tokens * itemsize
