"""``estimate_training_memory`` and ``estimate_inference_memory``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mpskit._base.arguments import check_callable, check_count
from mpskit.backends.precisions import PrecisionLike, precision_name, precision_of
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.patches import Patches
from mpskit.errors import ArgumentError
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.targets import check_processes, target_device, target_for
from mpskit.estimate.trace.gradient_buckets import DEFAULT_DDP
from mpskit.estimate.trace.optimizers import borrow
from mpskit.estimate.trace.run import Job, Step, Traced, build_model, trace
from mpskit.estimate.trace.steps import call_model, decode, default_loss
from mpskit.host.named import MachineLike

__all__ = [
    "estimate_inference_memory",
    "estimate_training_memory",
    "trace_inference",
    "trace_training",
]

Model = torch.nn.Module | type[torch.nn.Module] | Callable[[], torch.nn.Module]
Loss = Callable[[Any, Any], torch.Tensor]
TrainStep = Callable[[Any, Any, Any], Any]


def estimate_training_memory(
    model: Model,
    batch: Any,
    *,
    step: Loss | None = None,
    train_step: TrainStep | None = None,
    optimizer: Any = torch.optim.AdamW,
    precision: PrecisionLike = "fp32",
    accumulate: int = 1,
    device: str | torch.device | None = None,
    machine: MachineLike | None = None,
    steps: int = 2,
    world_size: int = 1,
) -> MemoryEstimate:
    """Return what training takes on a device, by running real steps on tensors without memory.

    The real autograd and the real optimizer run; nothing is computed and nothing large is
    allocated. The model, its gradients, the optimizer and every random state are afterwards as
    they were, also after a failure.

    Args:
        model: an ``nn.Module`` on any device, a class, or a callable that makes one (then it
            never exists with memory). Its training flags are used as they are.
        batch: tensors or ``TensorSpec``, nested. Integers keep their values; floats are not read.
        step: ``(model, batch) -> loss``. Without it: mappings are passed by name, tuples by
            position, a pair for a model with one input is (input, target); the loss is what the
            result calls so, its scalar, or the mean of its tensors.
        train_step: ``(model, batch, optimizer)``, a whole step of one's own, run as it is.
        optimizer: a class, a callable on the trainable parameters, an instance over the model's
            parameters, or None for none.
        precision: ``fp32``; ``bf16`` or ``fp16`` for weights of that type; ``bf16-mixed`` or
            ``fp16-mixed`` for autocast around the loss. Lightning's names (``16-mixed``,
            ``bf16-true``) and dtypes do too. What accelerate calls ``bf16`` is ``bf16-mixed``.
        accumulate: batches whose gradients are summed before the optimizer steps.
        device: ``cpu``, ``mps``, ``cuda`` or ``xpu``: the target, whatever machine this one is.
            None is the one that :func:`mpskit.get_optimal_device` chooses here.
        machine: a machine instead of a device: a name (``"m1-16gb"``, ``"T4"``), a
            :class:`mpskit.Machine` or a :class:`mpskit.Host`; its own device is the target.
        steps: steps to trace; the optimizer's state makes the second one the peak.
        world_size: processes that train together with ``DistributedDataParallel``, whose gradient
            buckets are counted then; a model that is wrapped already has them.

    Raises:
        EstimateError: the step cannot be traced; the message names operator and module.
        UnsupportedTorchError: the installed torch is too old to be traced.
        UnknownMachineError: no machine has that name.
        ArgumentError: a value that cannot be used.
    """
    traced = trace_training(
        model,
        batch,
        step=step,
        train_step=train_step,
        optimizer=optimizer,
        precision=precision,
        accumulate=accumulate,
        device=target_device(device, machine),
        steps=steps,
        world_size=world_size,
    )
    return traced.estimate()


def estimate_inference_memory(
    model: Model,
    batch: Any,
    *,
    step: Callable[[Any, Any], Any] | None = None,
    generate: int | None = None,
    precision: PrecisionLike = "fp32",
    device: str | torch.device | None = None,
    machine: MachineLike | None = None,
) -> MemoryEstimate:
    """Return what inference takes on a device, without gradients.

    Args:
        model: as for :func:`estimate_training_memory`.
        batch: as for :func:`estimate_training_memory`.
        step: ``(model, batch)``, one's own call or loop.
        generate: decode that many tokens with the model's key-value cache (transformers models).
        precision: as for :func:`estimate_training_memory`.
        device: as for :func:`estimate_training_memory`.
        machine: as for :func:`estimate_training_memory`.

    Raises:
        EstimateError: the step cannot be traced; the message names operator and module.
        UnsupportedTorchError: the installed torch is too old to be traced.
        UnknownMachineError: no machine has that name.
        ArgumentError: both ``step`` and ``generate``, or a count below one.
    """
    target = target_device(device, machine)
    traced = trace_inference(
        model, batch, step=step, generate=generate, precision=precision, device=target
    )
    return traced.estimate()


def trace_training(
    model: Model,
    batch: Any,
    *,
    step: Loss | None = None,
    train_step: TrainStep | None = None,
    optimizer: Any = torch.optim.AdamW,
    precision: PrecisionLike = "fp32",
    accumulate: int = 1,
    device: str | torch.device,
    steps: int = 2,
    world_size: int = 1,
    counts: OpCounts | None = None,
) -> Traced:
    """As :func:`estimate_training_memory`, before the events are replayed on an allocator.

    The operators of the last step are added to ``counts``.
    """
    check_callable("step", step)
    check_callable("train_step", train_step)
    if step is not None and train_step is not None:
        raise ArgumentError("give step= or train_step=, not both", given=step)
    check_counts(accumulate=accumulate, steps=steps)
    name = precision_name(precision)
    mixed = precision_of(name).autocast
    target, built = target_for(device), build_model(model)
    check_processes(world_size, target.device)
    if world_size > 1 and built.parallel is None:
        built = replace(built, parallel=DEFAULT_DDP)
    job = Job(built, batch, target, name, steps, "forward")
    job.counts = counts

    def prepare(patches: Patches) -> Step:
        chosen = borrow(optimizer, job.model, job.log, patches)
        if train_step is not None:
            return functools.partial(_own_step, train_step, chosen)
        autocast = functools.partial(autocast_on, job.target.device, mixed)
        return TrainingStep(step or default_loss, chosen, autocast, accumulate)

    return trace(job, prepare)


def trace_inference(
    model: Model,
    batch: Any,
    *,
    step: Callable[[Any, Any], Any] | None = None,
    generate: int | None = None,
    precision: PrecisionLike = "fp32",
    device: str | torch.device,
    counts: OpCounts | None = None,
) -> Traced:
    """As :func:`estimate_inference_memory`, before the events are replayed on an allocator.

    The operators of the last of two calls are added to ``counts``.
    """
    check_callable("step", step)
    if step is not None and generate is not None:
        raise ArgumentError("give step= or generate=, not both", given=step)
    check_counts(generate=1 if generate is None else generate)
    name = precision_name(precision)
    mixed = precision_of(name).autocast
    job = Job(build_model(model), batch, target_for(device), name, 2, "inference")
    job.counts = counts
    call = step or (call_model if generate is None else decode(generate))

    def inference(model: torch.nn.Module, batch: Any) -> None:
        with torch.no_grad(), autocast_on(job.target.device, mixed):
            call(model, batch)

    return trace(job, lambda _: inference)


class TrainingStep:
    """The default training step."""

    def __init__(
        self, loss: Loss, optimizer: Any, autocast: Callable[[], Any], accumulate: int
    ) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.autocast, self.accumulate = autocast, accumulate

    def __call__(self, model: torch.nn.Module, batch: Any) -> None:
        for _ in range(self.accumulate):
            with self.autocast():
                loss = self.loss(model, batch)
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()


def _own_step(run: TrainStep, optimizer: Any, model: torch.nn.Module, batch: Any) -> None:
    run(model, batch, optimizer)


def autocast_on(device: str, dtype: torch.dtype | None) -> Any:
    """Return an autocast region of that dtype, or one that does nothing without a dtype."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)


def check_counts(**counts: int) -> None:
    """Raise unless every count is an int of at least 1.

    Raises:
        ArgumentTypeError: one is no int.
        ArgumentError: one is below 1.
    """
    for name, count in counts.items():
        check_count(name, count, least=1)
