"""``estimate_training_memory`` and ``estimate_inference_memory``."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpskit.errors import ArgumentError, EstimateError
from mpskit.estimate.ledger import Ledger
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.scope import Scope
from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.steps import default_loss
from mpskit.estimate.summary import Summary
from mpskit.estimate.swap import kept_random_state, swapped
from mpskit.estimate.trace import Tracer
from mpskit.estimate.unbacked import unbacked_storage, unbacked_tensor


def estimate_training_memory(model, batch, *, step=None, train_step=None, optimizer=torch.optim.AdamW,
    precision="fp32", accumulate=1, device="mps", steps=2):
    gc.collect()
    ledger = Ledger()
    with kept_random_state(), no_gc():
        if not isinstance(model, torch.nn.Module):
            with Tracer(Ledger()):
                model = model()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with swapped(model, ledger, dtype):
            batch = build_batch(batch, ledger, dtype)
            tracer = Tracer(ledger)
            opt = optimizer([p for p in model.parameters() if p.requires_grad])
            scope = Scope(model, ledger, "forward")
            fn = step or default_loss
            ac = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}.get(precision)
            with scope.watching(), tracer:
                for i in range(steps):
                    scope.begin(i)
                    if train_step:
                        train_step(model, batch, opt)
                    else:
                        _step(fn, model, batch, opt, accumulate, ac)
            ledger.close()
            del opt
    s = Summary(ledger)
    return s, ledger

def _step(fn, model, batch, opt, accumulate, ac):
    for _ in range(accumulate):
        with torch.autocast("cpu", ac, enabled=ac is not None):
            loss = fn(model, batch)
        loss.backward()
    opt.step()
    opt.zero_grad()

@contextlib.contextmanager
def no_gc():
    on = gc.isenabled()
    gc.disable()
    try: yield
    finally:
        if on: gc.enable()

def build_batch(batch, ledger, dtype):
    def one(item):
        dt = item.torch_dtype() if isinstance(item, TensorSpec) else item.dtype
        shape = tuple(item.shape)
        if dt.is_floating_point:
            dt = dtype or dt
            m = torch.empty(shape, dtype=dt, device="meta")
            t = unbacked_tensor(shape, m.stride(), dt, m.untyped_storage().nbytes())
        elif isinstance(item, TensorSpec):
            t = torch.full(shape, item.fill, dtype=dt)
        else:
            t = item.clone()
        ledger.add(t.untyped_storage(), "batch")
        return t
    return map_tensors(batch, one)
