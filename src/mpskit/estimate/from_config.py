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

from mpskit._base.arguments import check_version, shown, wrong_type
from mpskit.allocator import AllocatorModel, allocator_for
from mpskit.backends.precisions import PrecisionLike, precision_name, precision_of
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.patches import Patches
from mpskit.errors import ArgumentError
from mpskit.estimate.api import Loss, TrainingStep, autocast_on, check_counts
from mpskit.estimate.reference.base_weights import read_base
from mpskit.estimate.reference.config import read_config, read_lora, read_shape
from mpskit.estimate.reference.generation import check_cache, generating, left_out
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.reference.processes import Processes, read_processes
from mpskit.estimate.reference.repeat_layers import LayerMarks, Subject, repeat_middle
from mpskit.estimate.result import KINDS, MemoryEstimate, Peak
from mpskit.estimate.specs import TensorSpec
from mpskit.estimate.targets import Target, target_device, target_for
from mpskit.estimate.trace.optimizers import borrow, optimizer_class
from mpskit.estimate.trace.run import Built, Job, Step, Traced, margin_notes, trace
from mpskit.estimate.trace.steps import call_model, default_loss
from mpskit.estimate.trace.storage_log import Record
from mpskit.host.named import MachineLike

__all__ = [
    "ConfigTrace",
    "Stepped",
    "estimate_from_config",
    "trace_subject",
    "traced_config",
]

_STEPS = 2  # the optimizer's state makes the second one the peak


def estimate_from_config(
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
    cache_len: int | None = None,
    device: str | None = None,
    machine: MachineLike | None = None,
    torch_version: str | None = None,
    world_size: int = 1,
    sharding: Literal["ddp", "fsdp"] | None = None,
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
            (``r``, ``target_modules`` and ``lora_dropout`` are taken too; the targets of a rank
            alone are query and value); every other weight is frozen.
        base: dtype of the weights that are frozen under ``lora``, or that inference runs on, where
            it is not the precision's: ``bf16``, ``fp16``, or ``int8`` and ``nf4`` for the layers'
            projections as bitsandbytes quantizes them (the rest is ``precision``'s half-precision
            dtype, bfloat16 where it has none). The adapters are float32 then, as peft makes them,
            unless ``precision`` names a half-precision dtype for them.
        precision: as for :func:`estimate_training_memory`. With ``base``, ``fp32`` is no autocast
            (``Trainer`` without ``bf16=True``).
        optimizer: a name in torch.optim in any case (``adamw``), a class, a callable on the
            trainable parameters, or None for none.
        accumulate: batches whose gradients are summed before the optimizer steps.
        checkpointing: whether each layer's activations are computed again in the backward pass
            (``gradient_checkpointing_enable()``).
        cache_len: with ``training=False``, tokens of each row in the key-value cache at the end of
            ``generate()``: a prompt of ``seq_len``, then one token at a time.
        device: ``cpu``, ``mps``, ``cuda`` or ``xpu``. None is the one that
            :func:`mpskit.get_optimal_device` chooses here.
        machine: a machine instead of a device: a name (``"m1-16gb"``, ``"T4"``), a
            :class:`mpskit.Machine` or a :class:`mpskit.Host`; its own device is the target.
        torch_version: the torch whose allocator is meant; the installed one by default.
        world_size: processes that train together, each on a device of its own; the batch and the
            figures are those of one process, the first.
        sharding: ``ddp`` for ``DistributedDataParallel``, which several processes use by default;
            ``fsdp`` for ``torch.distributed.fsdp.fully_shard`` on each layer and on the model,
            with a ``MixedPrecisionPolicy`` where the precision is a mixed one.
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
    check_version(torch_version)
    traced = traced_config(
        config,
        batch_size=batch_size,
        seq_len=seq_len,
        training=training,
        lora=lora,
        base=base,
        precision=precision,
        optimizer=optimizer,
        accumulate=accumulate,
        checkpointing=checkpointing,
        cache_len=cache_len,
        device=target_device(device, machine),
        world_size=world_size,
        sharding=sharding,
        implementation=implementation,
    )
    return traced.estimate(torch_version)


@dataclass(frozen=True)
class ConfigTrace:
    """A setting's events on one kind of device, which every allocator of it can replay.

    Attributes:
        traced: the events of the deep model.
        base: dtype of the frozen weights, where it is not the precision's.
    """

    traced: Traced
    base: str | None = None

    def estimate(self, torch_version: str | None = None) -> MemoryEstimate:
        """Replay the events on the device's allocator of a torch version (the installed one).

        Raises:
            ArgumentTypeError: the version is no str.
        """
        if torch_version is not None and not isinstance(torch_version, str):
            raise wrong_type("torch_version", "a str such as '2.13.0'", torch_version)
        return _estimated(self.traced, torch_version or torch.__version__, self.base)


def traced_config(
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
    cache_len: int | None = None,
    device: str,
    world_size: int = 1,
    sharding: Literal["ddp", "fsdp"] | None = None,
    implementation: Literal["reference", "transformers"] = "reference",
) -> ConfigTrace:
    """As :func:`estimate_from_config`, before the events are replayed on an allocator.

    The device decides which kernels run and what they take, so each kind has a trace of its own;
    torch's versions differ in the allocator and share it.
    """
    check_counts(batch_size=batch_size, seq_len=seq_len, accumulate=accumulate)
    for name, value in (("training", training), ("checkpointing", checkpointing)):
        if not isinstance(value, bool):
            raise wrong_type(name, "True or False", value)
    _check_optimizer(optimizer)
    _check_cache_len(cache_len, training=training)
    target, frozen = target_for(device), lora is not None or not training
    named = precision_name(precision)
    weights = read_base(base, precision=named, frozen=frozen, device=target.device)
    processes = read_processes(
        world_size, sharding, training=training, device=target.device, base=base
    )
    if implementation == "transformers":
        from mpskit.estimate.reference.transformers_model import build_transformers

        of_reference = {
            "base": base,
            "cache_len": cache_len,
            "world_size": processes and world_size,
        }
        for name, given in of_reference.items():
            if given is not None:
                raise ArgumentError(f"{name}= is for implementation='reference'", given=given)
        subject = build_transformers(
            read_config(config), tokens=seq_len, lora=lora, checkpointing=checkpointing
        )
    elif implementation == "reference":
        shape = read_shape(config, tokens=cache_len or seq_len)
        if cache_len is not None:
            check_cache(shape, seq_len=seq_len, cache_len=cache_len)
        adapters = read_lora(shape, lora)
        subject = build_reference(
            shape,
            lora=adapters,
            checkpointing=checkpointing,
            base=weights,
            depth=None if processes is None else processes.depth(shape.layers),
        )
    else:
        raise ArgumentError(
            f"implementation is 'reference' or 'transformers', not {shown(implementation)}",
            given=implementation,
        )
    step = Stepped(
        training,
        named,
        optimizer_class(optimizer),
        accumulate,
        weights is not None,
        cache_len,
        processes,
    )
    return ConfigTrace(trace_subject(subject, step, target, (batch_size, seq_len)), base)


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, str | None) and not callable(optimizer):
        raise wrong_type("optimizer", "a name, a class or None", optimizer)


def _check_cache_len(cache_len: int | None, *, training: bool) -> None:
    if cache_len is None:
        return
    check_counts(cache_len=cache_len)
    if training:
        raise ArgumentError("cache_len= is for inference: give training=False", given=cache_len)


@dataclass(frozen=True)
class Stepped:
    """How a step is run: with gradients or not, in which precision, with what behind it."""

    training: bool = True
    precision: str = "fp32"
    optimizer: Any = torch.optim.AdamW
    accumulate: int = 1
    keeps_dtypes: bool = False  # the weights have theirs already
    cache_len: int | None = None  # of inference: decode until the cache holds so many tokens
    processes: Processes | None = None  # that train together, if there are several


def trace_subject(
    subject: Subject,
    how: Stepped,
    target: Target,
    shape: tuple[int, int],
    counts: OpCounts | None = None,
) -> Traced:
    """Return the events of a deep model's step, from those of a shallow one.

    Args:
        subject: the shallow model.
        how: what a step is.
        target: the device whose memory is asked for.
        shape: rows of the batch, and tokens in each.
        counts: what the operators of the shallow model's last step are added to, if anything.
    """
    subject.model.train(how.training)
    tokens = TensorSpec(shape, "int64")
    batch = {"input_ids": tokens}
    if how.training and subject.labels is not None:
        by_row = TensorSpec(shape[:1], "int64")
        batch["labels"] = by_row if subject.labels == "rows" else tokens
    phase = "forward" if how.training else "inference"
    steps = _STEPS if how.cache_len is None else 1
    job = Job(Built(subject.model, subject.notes), batch, target, how.precision, steps, phase)
    job.keeps_dtypes = how.keeps_dtypes
    stored = _compute_in(job, how.processes)
    job.counts = counts
    marks = LayerMarks(subject.model, subject.stacks, job.log)
    autocast = functools.partial(autocast_on, target.device, precision_of(how.precision).autocast)

    call = call_model if how.cache_len is None else generating(shape[1], how.cache_len)

    def inference(model: torch.nn.Module, batch: Any) -> None:
        with torch.no_grad(), autocast():
            call(model, batch)

    def prepare(patches: Patches) -> Step:
        marks.watch(patches)
        if not how.training:
            return inference
        made = borrow(how.optimizer, subject.model, job.log, patches)
        loss: Loss = default_loss
        if made is not None:
            made.step = functools.partial(marks.stepping, made.step)
        if how.processes is not None:
            loss = how.processes.install(marks, patches, made, stored, target.device)
        return TrainingStep(loss, made, autocast, how.accumulate)

    traced = trace(job, prepare)
    traced.log = repeat_middle(traced.log, marks, subject.layers)
    if how.cache_len is not None and target.device == "mps":
        traced.notes += left_out(shape[1], how.cache_len)
    if how.processes is not None:
        traced.notes += (how.processes.note,)
    return traced


def _compute_in(job: Job, processes: Processes | None) -> list[int]:
    """Cast the parameters to what ``fully_shard`` computes in; return their stored item sizes.

    With a ``MixedPrecisionPolicy`` the shares stay as they are, and are cast when gathered.
    """
    if processes is None or processes.sharding != "fsdp":
        return []
    dtypes, parameters = precision_of(job.precision), list(job.model.parameters())
    weights = None if job.keeps_dtypes else dtypes.weights
    stored = [p.element_size() if weights is None else weights.itemsize for p in parameters]
    if dtypes.autocast is not None:
        job.keeps_dtypes = True
        for parameter in parameters:
            parameter.data = parameter.data.to(dtypes.autocast)
    return stored


def _estimated(traced: Traced, torch_version: str, base: str | None) -> MemoryEstimate:
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
        base=base,
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
