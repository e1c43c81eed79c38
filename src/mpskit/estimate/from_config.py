"""``estimate_from_config``: a transformer's memory from its config, without the model."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mpskit._base.arguments import wrong_type
from mpskit.allocator import AllocatorModel, allocator_for
from mpskit.backends.precisions import PrecisionLike, precision_name, precision_of
from mpskit.dispatch.patches import Patches
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.api import TrainingStep, autocast_on, check_counts
from mpskit.estimate.reference.config import read_config, read_lora, read_shape
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.reference.repeat_layers import LayerMarks, Subject, repeat_middle
from mpskit.estimate.result import KINDS, MemoryEstimate, Peak
from mpskit.estimate.specs import TensorSpec
from mpskit.estimate.targets import Target, target_device, target_for
from mpskit.estimate.trace.optimizers import borrow
from mpskit.estimate.trace.run import Built, Job, Step, Traced, margin_notes, trace
from mpskit.estimate.trace.steps import default_loss
from mpskit.estimate.trace.storage_log import Record
from mpskit.host.named import MachineLike

__all__ = ["Stepped", "estimate_from_config", "trace_subject"]

_STEPS = 2  # the optimizer's state makes the second one the peak


def estimate_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    batch_size: int,
    seq_len: int,
    training: bool = True,
    lora: Mapping[str, Any] | int | None = None,
    precision: PrecisionLike = "fp32",
    optimizer: Any = "adamw",
    accumulate: int = 1,
    checkpointing: bool = False,
    device: str | None = None,
    machine: MachineLike | None = None,
    torch_version: str | None = None,
    implementation: Literal["reference", "transformers"] = "reference",
) -> MemoryEstimate:
    """Return what a step of a transformer takes, from its config alone.

    A module of the family is built from torch.nn with a few layers, steps of it are traced as
    :func:`estimate_training_memory` does, the middle layer is repeated in the list of allocations,
    and the list goes through the model of the target's allocator.

    Args:
        config: a transformers config as a mapping, the path of a config.json (or its folder), or
            the name of a bundled model such as ``"Qwen/Qwen2.5-0.5B"``.
        batch_size: rows of the batch.
        seq_len: tokens in each row; an encoder-decoder has as many on both sides.
        training: a whole training step; False for one forward pass without gradients.
        lora: adapters, as a rank or as ``{"rank": 8, "targets": ["q_proj", "v_proj"]}``
            (``r`` and ``target_modules`` are taken too; the targets of a rank alone are query
            and value); every other weight is frozen.
        precision: as for :func:`estimate_training_memory`.
        optimizer: a name in torch.optim in any case (``adamw``), a class, a callable on the
            trainable parameters, or None for none.
        accumulate: batches whose gradients are summed before the optimizer steps.
        checkpointing: whether each layer's activations are computed again in the backward pass
            (``gradient_checkpointing_enable()``).
        device: ``cpu``, ``mps``, ``cuda`` or ``xpu``. None is the one that
            :func:`mpskit.get_optimal_device` chooses here.
        machine: a machine instead of a device: a name (``"m1-16gb"``, ``"T4"``), a
            :class:`mpskit.Machine` or a :class:`mpskit.Host`; its own device is the target.
        torch_version: the torch whose allocator is meant; the installed one by default.
        implementation: ``reference`` for mpskit's own modules of the families that it knows;
            ``transformers`` for the library's class, of any family, where it is installed.

    Returns:
        The figures at the peak of a step in the steady state, in bytes; no timeline.

    Raises:
        UnknownMachineError: no machine has that name.
        ArgumentError: a missing key of the config (named), an unknown family, a wrong value, or
            something that is not modelled.
        ArgumentTypeError: an argument of the wrong type.
        EstimateError: the layers differ, or the step cannot be traced.
        UnsupportedTorchError: the installed torch is too old to be traced.
    """
    check_counts(batch_size=batch_size, seq_len=seq_len, accumulate=accumulate)
    for name, value in (("training", training), ("checkpointing", checkpointing)):
        if not isinstance(value, bool):
            raise wrong_type(name, "True or False", value)
    if torch_version is not None and not isinstance(torch_version, str):
        raise wrong_type("torch_version", "a str such as '2.13.0'", torch_version)
    if implementation == "transformers":
        from mpskit.estimate.reference.transformers_model import build_transformers

        subject = build_transformers(
            read_config(config), tokens=seq_len, lora=lora, checkpointing=checkpointing
        )
    elif implementation == "reference":
        shape = read_shape(config, tokens=seq_len)
        adapters = read_lora(shape, lora)
        subject = build_reference(shape, lora=adapters, checkpointing=checkpointing)
    else:
        raise ArgumentError(
            f"implementation is 'reference' or 'transformers', not {implementation!r}",
            given=implementation,
        )
    step = Stepped(training, precision_name(precision), _optimizer(optimizer), accumulate)
    target = target_for(target_device(device, machine))
    traced = trace_subject(subject, step, target, (batch_size, seq_len))
    return _estimated(traced, torch_version or torch.__version__)


@dataclass(frozen=True)
class Stepped:
    """How a step is run: with gradients or not, in which precision, with what behind it."""

    training: bool = True
    precision: str = "fp32"
    optimizer: Any = torch.optim.AdamW
    accumulate: int = 1


def trace_subject(subject: Subject, how: Stepped, target: Target, shape: tuple[int, int]) -> Traced:
    """Return the events of a deep model's step, from those of a shallow one.

    Args:
        subject: the shallow model.
        how: what a step is.
        target: the device whose memory is asked for.
        shape: rows of the batch, and tokens in each.
    """
    subject.model.train(how.training)
    tokens = TensorSpec(shape, "int64")
    batch = {"input_ids": tokens}
    if how.training and subject.labels is not None:
        by_row = TensorSpec(shape[:1], "int64")
        batch["labels"] = by_row if subject.labels == "rows" else tokens
    phase = "forward" if how.training else "inference"
    job = Job(Built(subject.model, subject.notes), batch, target, how.precision, _STEPS, phase)
    marks = LayerMarks(subject.model, subject.stacks, job.log)
    autocast = functools.partial(autocast_on, target.device, precision_of(how.precision).autocast)

    def inference(model: torch.nn.Module, batch: Any) -> None:
        with torch.no_grad(), autocast():
            model(**batch)

    def prepare(patches: Patches) -> Step:
        marks.watch(patches)
        if not how.training:
            return inference
        made = borrow(how.optimizer, subject.model, job.log, patches)
        if made is not None:
            made.step = functools.partial(marks.stepping, made.step)
        return TrainingStep(default_loss, made, autocast, how.accumulate)

    traced = trace(job, prepare)
    traced.log = repeat_middle(traced.log, marks, subject.layers)
    return traced


def _optimizer(given: Any) -> Any:
    """Return an optimizer's class, by its name where that is given."""
    if given is None or (callable(given) and not isinstance(given, torch.optim.Optimizer)):
        return given
    if not isinstance(given, str):
        raise ArgumentTypeError(
            f"an optimizer is a name, a class or None, not {type(given).__name__}", given=given
        )
    known = {
        name.lower(): found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    }
    if given.lower() not in known:
        names = ", ".join(sorted(known))
        raise ArgumentError(f"torch.optim has no {given!r}: one of {names}", given=given)
    return known[given.lower()]


def _estimated(traced: Traced, torch_version: str) -> MemoryEstimate:
    """Replay the events, and sum up what is alive at the peak."""
    records, events = traced.log.records, traced.log.events
    model = allocator_for(traced.target.device, torch_version=torch_version)
    at, high = _replayed(records, events, model)
    alive = bytearray(len(records))
    for event in events[: at + 1]:
        alive[event if event >= 0 else ~event] = event >= 0
    total = Counter(dict.fromkeys(KINDS, 0))
    for record in itertools.compress(records, alive):
        total[record.kind or "temporaries"] += record.size
    total["slack"] = model.peak_live_bytes - total.total()
    top, margin = records[events[at]], max(high - model.peak_live_bytes, 0)
    kinds: dict[str, Any] = {f"{kind}_bytes": total[kind] for kind in KINDS}
    return MemoryEstimate(
        device=traced.target.device,
        torch_version=torch_version,
        precision=traced.precision,
        method="reference",
        peak_bytes=model.peak_live_bytes,
        peak_margin_bytes=margin,
        driver_bytes=model.peak_driver_bytes,
        peak=Peak(op=top.op, module=top.module, phase=top.phase, step=max(top.step, 0)),
        notes=(*traced.notes, *margin_notes(margin)),
        **kinds,
    )


def _replayed(records: list[Record], events: list[int], model: AllocatorModel) -> tuple[int, int]:
    """Run the events through a model; return which of them reached the peak, and its high end."""
    allocate, free, blocks = model.allocate, model.free, [0] * len(records)
    most = at = high = 0
    for index, event in enumerate(events):
        if event < 0:
            free(blocks[~event])
            continue
        record = records[event]
        blocks[event] = allocate(record.size)
        live = model.live_bytes
        if live > most:
            most, at = live, index
        if live + record.margin > high:
            high = live + record.margin
    return at, high
