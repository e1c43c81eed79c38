"""What a simulated Mac reports for a case: the same two steps, on ``mps``, in real numbers.

``python benchmarks/estimate_simulated.py CASE`` prints one JSON object: the peak of tensors and
of the driver during the two steps.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from typing import Any

import torch
from estimate_cases import CASES, Case
from estimate_truth import DTYPES, MIXED, inference_step, real_batch

import mpskit
from mpskit.estimate.specs import map_tensors
from mpskit.estimate.trace.steps import default_loss

MACHINE = "m3-ultra-512gb"


def one_step(case: Case, model: Any, batch: Any, optimizer: Any) -> None:
    if case.train_step is not None:
        case.train_step(model, batch, optimizer)
        return
    loss_of = case.step or default_loss
    mixed = MIXED.get(case.precision)
    for _ in range(case.accumulate):
        with torch.autocast("mps", mixed, enabled=mixed is not None):
            loss = loss_of(model, batch)
        loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def measure(case: Case) -> dict[str, Any]:
    torch.manual_seed(0)
    model = case.model()
    if case.precision in DTYPES:
        model.to(DTYPES[case.precision])
    batch = real_batch(case)
    with mpskit.simulate(MACHINE) as mac:
        model.to("mps")
        batch = map_tensors(batch, lambda tensor: tensor.to("mps"))
        optimizer = None
        if case.optimizer is not None and not case.inference:
            optimizer = case.optimizer([p for p in model.parameters() if p.requires_grad])
        gc.collect()
        gc.disable()
        mac.reset_peaks()
        for _ in range(2):
            if case.inference:
                inference_step(case, model, batch)
            else:
                one_step(case, model, batch, optimizer)
        live, driver = mac.peak_allocated_bytes, mac.peak_driver_bytes
    return {"case": case.name, "peak_bytes": live, "driver_bytes": driver}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(CASES[sys.argv[1]])
    print(json.dumps(found))
