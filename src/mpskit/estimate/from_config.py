"""``estimate_from_config``: a transformer's memory from its config, without the model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.api import TrainingStep, autocast_on, check_counts
from mpskit.estimate.reference.config import read_lora, read_shape
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.reference.repeat_layers import TRACED_LAYERS, LayerMarks, repeat_middle
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.specs import TensorSpec
from mpskit.estimate.targets import target_for
from mpskit.estimate.trace.optimizers import borrowed
from mpskit.estimate.trace.run import Job, Step, Traced, precision_of, trace
from mpskit.estimate.trace.steps import default_loss

__all__ = ["estimate_from_config"]


def estimate_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    batch_size: int,
    seq_len: int,
    training: bool = True,
    lora: Mapping[str, Any] | int | None = None,
    precision: str = "fp32",
    optimizer: Any = "adamw",
    accumulate: int = 1,
    checkpointing: bool = False,
    device: str = "mps",
    torch_version: str | None = None,
    implementation: Literal["reference", "transformers"] = "reference",
) -> MemoryEstimate:
    return trace_config(config,batch_size=batch_size,seq_len=seq_len,training=training,lora=lora,precision=precision,optimizer=optimizer,accumulate=accumulate,checkpointing=checkpointing,device=device).estimate(torch_version)

def trace_config(config, *, batch_size, seq_len, training=True, lora=None, precision="fp32", optimizer="adamw", accumulate=1, checkpointing=False, device="mps", full=False):
    shape = read_shape(config, tokens=seq_len)
    adapters = read_lora(shape, lora)
    traced = shape.layers if full else tuple(min(count, TRACED_LAYERS if len(shape.layers)==1 else 5) for count in shape.layers)
    model = build_reference(shape, traced, lora=adapters, checkpointing=checkpointing)
    spec = TensorSpec((batch_size, seq_len), "int64")
    batch = {"input_ids": spec}
    if training and shape.head != "none":
        batch["labels"] = TensorSpec((batch_size,), "int64") if shape.head == "classes" else spec
    job = Job(model, batch, target_for(device), precision, 2, "forward" if training else "inference", shape.notes)
    marks = LayerMarks(model, [s.layers for s in model.stacks], job.ledger)
    mixed = precision_of(precision).autocast
    autocast = functools.partial(autocast_on, job.target.device, mixed)
    if isinstance(optimizer,str): optimizer={"adamw":torch.optim.AdamW,"sgd":torch.optim.SGD}[optimizer]
    def prepare(stack):
        stack.enter_context(marks.watching())
        if not training:
            def inf(model,batch):
                with torch.no_grad(), autocast(): model(**batch)
            return inf
        chosen = stack.enter_context(borrowed(optimizer, model, job.ledger))
        chosen.step = functools.partial(marks.stepping, chosen.step)
        return TrainingStep(default_loss, chosen, autocast, accumulate)
    model.train(training)
    t = trace(job, prepare)
    if not full: t.ledger = repeat_middle(t.ledger, marks, shape.layers)
    return t
