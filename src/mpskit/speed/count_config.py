"""What a transformer's step computes, counted from its config: shallow traces, added to its depth.

What a model counts grows in a straight line with its layers, since all of a stack but the outermost
are alike. Two traces of few layers, one deeper than the other, tell the line; an encoder-decoder
takes a third.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mpskit._base.arguments import wrong_type
from mpskit.backends.precisions import PrecisionLike, precision_name, precision_of
from mpskit.dispatch.op_counts import OpCounts
from mpskit.errors import ArgumentError
from mpskit.estimate.api import check_counts
from mpskit.estimate.from_config import Stepped, trace_subject
from mpskit.estimate.reference.base_weights import Base, read_base
from mpskit.estimate.reference.config import Lora, Shape, read_lora, read_shape
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.targets import Target, target_device, target_for
from mpskit.estimate.trace.optimizers import optimizer_class
from mpskit.host.named import MachineLike
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
    base: str | None = None,
    precision: PrecisionLike = "fp32",
    optimizer: Any = "adamw",
    accumulate: int = 1,
    checkpointing: bool = False,
    cached_tokens: int = 0,
    device: str | None = None,
    machine: MachineLike | None = None,
) -> Workload:
    """Return what a step of a transformer computes, from its config alone.

    Args:
        config: as for :func:`mpskit.estimate_from_config`.
        batch_size: as there.
        seq_len: as there; 1 without gradients is a step of decoding.
        training: as there.
        lora: as there.
        base: as there.
        precision: as there.
        optimizer: as there.
        accumulate: as there.
        checkpointing: as there.
        cached_tokens: tokens in the key-value cache that the step reads, without gradients.
        device: whose operators are counted: ``mps``, ``cpu``, ``cuda`` or ``xpu``; None is
            ``mps``.
        machine: as there, instead of a device.

    Raises:
        UnknownMachineError: no machine has that name.
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
    target = target_for(target_device(device or (None if machine else "mps"), machine))
    shape, named = read_shape(config, tokens=seq_len + cached_tokens), precision_name(precision)
    frozen = lora is not None or not training
    weights = read_base(base, precision=named, frozen=frozen, device=target.device)
    how = Stepped(training, named, optimizer_class(optimizer), accumulate, weights is not None)
    size, adapters = (batch_size, seq_len), read_lora(shape, lora)
    step = _Step(shape, adapters, weights, how, size, checkpointing, target)
    few = tuple(min(count, _FEW) for count in shape.layers)
    counts, params = step.counted(few)
    total = _Sum(counts, params)
    for stack, (all_, traced) in enumerate(zip(shape.layers, few, strict=True)):
        if all_ > traced:
            deeper = tuple(n + (number == stack) for number, n in enumerate(few))
            total.add_layers(*step.counted(deeper), all_ - traced)
    cache = cached_tokens * batch_size * step.cached_bytes()
    found = workload_of(total.counts, recurrent=False, training=training, params=total.params)
    decoding = not training and seq_len == 1
    more: dict[str, Any] = {"bytes_moved": (found.bytes_moved or 0.0) + cache}
    more["op_class"] = "llm_decode" if decoding else "transformer"
    return found.model_copy(update=more)


@dataclass(frozen=True)
class _Step:
    """A step to count."""

    shape: Shape
    lora: Lora | None
    base: Base | None
    how: Stepped
    size: tuple[int, int]
    checkpointing: bool
    target: Target

    def counted(self, layers: tuple[int, ...]) -> tuple[OpCounts, int]:
        """Return the counts, and the parameters, of a model with so many layers and no more."""
        subject = build_reference(
            replace(self.shape, layers=layers),
            lora=self.lora,
            checkpointing=self.checkpointing,
            depth=max(layers),
            base=self.base,
        )
        counts = OpCounts()
        trace_subject(subject, self.how, self.target, self.size, counts)
        return counts, sum(parameter.numel() for parameter in subject.model.parameters())

    def cached_bytes(self) -> int:
        """Return the bytes of a token's keys and values in the whole cache."""
        weights, autocast = precision_of(self.how.precision)
        dtype = autocast or (self.base.weights if self.base else weights) or torch.float32
        numbers = 2 * sum(self.shape.layers) * self.shape.kv_heads * self.shape.head_width
        return numbers * dtype.itemsize


class _Sum:
    """The counts of a few layers, to which those of more are added."""

    def __init__(self, counts: OpCounts, params: int) -> None:
        self._few, self._few_params = counts, params
        self.counts, self.params = counts.plus(OpCounts(), 0), params

    def add_layers(self, deeper: OpCounts, params: int, layers: int) -> None:
        """Add what ``layers`` more of a stack count, where ``deeper`` has one more than the few."""
        self.counts = self.counts.plus(deeper, layers).plus(self._few, -layers)
        self.params += (params - self._few_params) * layers
