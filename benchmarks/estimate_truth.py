"""What a case really takes on the CPU: torch's own allocation events over two real steps.

``python benchmarks/estimate_truth.py CASE`` prints one JSON object. The peak is the largest sum
of the profiler's ``[memory]`` events, in time order, between the start and the end of the two
steps; parameters and batch, allocated before, are in the sum.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from typing import Any

import torch
from estimate_cases import CASES, Case
from torch.profiler import ProfilerActivity, profile, record_function

from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.trace.steps import call_model, default_loss

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MIXED = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
MARK = "the measured steps"


def real_batch(case: Case) -> Any:
    dtype = DTYPES.get(case.precision)

    def real(item: Any) -> torch.Tensor:
        if isinstance(item, torch.Tensor):
            return item.clone()
        assert isinstance(item, TensorSpec)
        wanted = item.torch_dtype()
        if not wanted.is_floating_point:
            return torch.full(item.shape, item.fill, dtype=wanted)
        return torch.randn(item.shape, dtype=dtype or wanted)

    return map_tensors(case.batch, real)


def one_step(case: Case, model: Any, batch: Any, optimizer: Any) -> None:
    if case.train_step is not None:
        case.train_step(model, batch, optimizer)
        return
    loss_of = case.step or default_loss
    mixed = MIXED.get(case.precision)
    for _ in range(case.accumulate):
        with torch.autocast("cpu", mixed, enabled=mixed is not None):
            loss = loss_of(model, batch)
        loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def inference_step(case: Case, model: Any, batch: Any) -> None:
    with torch.no_grad():
        if case.generate:
            model.generate(
                **batch, max_new_tokens=case.generate, do_sample=False, min_new_tokens=case.generate
            )
        else:
            (case.step or call_model)(model, batch)


def run(case: Case) -> None:
    model = case.model()
    if case.precision in DTYPES:
        model.to(DTYPES[case.precision])
    batch = real_batch(case)
    optimizer = None
    if case.optimizer is not None and not case.inference:
        optimizer = case.optimizer([p for p in model.parameters() if p.requires_grad])
    gc.collect()
    gc.disable()
    with record_function(MARK):
        for _ in range(2):
            if case.inference:
                inference_step(case, model, batch)
            else:
                one_step(case, model, batch, optimizer)
    gc.enable()


def peak(events: Any) -> tuple[int, int]:
    """Return the bytes alive when the steps begin, and the most during them."""
    mark = next(e for e in events if e.name() == MARK)
    begin, end = mark.start_ns(), mark.end_ns()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    total = before = most = 0
    for moment, size in memory:
        total += size
        if moment < begin:
            before = most = total
        elif moment <= end:
            most = max(most, total)
    return before, most


def measure(case: Case) -> dict[str, Any]:
    torch.manual_seed(0)
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        run(case)
    assert prof.profiler is not None
    before, most = peak(prof.profiler.kineto_results.events())
    return {
        "case": case.name,
        "before_bytes": before,
        "peak_bytes": most,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(CASES[sys.argv[1]])
    print(json.dumps(found))
