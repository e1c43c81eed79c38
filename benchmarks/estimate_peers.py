"""Other ways to say how much a training step takes, run on the same models.

Each takes a case and returns bytes, or None where it does not apply. The formulas are written from
their authors' public documentation:

- accelerate: ``accelerate estimate-memory`` (``accelerate/commands/estimate.py``): training with
  Adam is four times the weights, inference the weights and a fifth.
- torchinfo: ``torchinfo.summary``: input, the outputs of every layer twice, and the weights; the
  gradients and optimizer states that it leaves out are added, correctly.
- MemTracker: ``torch.distributed._tools.mem_tracker`` under ``FakeTensorMode``, two steps.
- DeepSpeed: ZeRO-2 on one GPU without offload, ``deepspeed.runtime.zero.stage_1_and_2``
  ``estimate_zero2_model_states_mem_needs``: 4 + 16 / GPUs bytes a parameter, its buffer factor
  1.5 belongs to the CPU.
- EleutherAI: ``transformer-mem`` of the cookbook (github.com/EleutherAI/cookbook, after Korthikanti
  et al. 2022): 18 bytes a parameter for mixed-precision Adam (fp32: 16), and activations
  s b h (34 + 5 a s / h) bytes a layer in half precision, twice that in fp32.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from estimate_cases import Case
from estimate_truth import DTYPES, inference_step, one_step, real_batch

__all__ = ["PEERS"]

STATES = {"AdamW": 2, "Adam": 2, "SGD": 0}


def accelerate(case: Case) -> int | None:
    weights = _weights(_meta(case))
    return int(weights * 1.2) if case.inference else 4 * weights


def torchinfo(case: Case) -> int | None:
    from torchinfo import summary

    model, batch = case.model(), real_batch(case)
    given = {"input_data": batch} if isinstance(batch, dict) else {"input_data": [_first(batch)]}
    with contextlib.redirect_stdout(io.StringIO()):
        found = summary(model, **given, verbose=0)
    total = found.total_input + found.total_output_bytes + found.total_param_bytes
    if case.inference:
        return int(total)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(total + trained * (1 + _states(case, model)))


def mem_tracker(case: Case) -> int | None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        model = case.model()
        if case.precision in DTYPES:
            model.to(DTYPES[case.precision])
        batch = real_batch(case)
        optimizer = None
        if case.optimizer is not None:
            optimizer = case.optimizer([p for p in model.parameters() if p.requires_grad])
        tracker = MemTracker()
        tracker.track_external(model, *([optimizer] if optimizer else []), *_tensors(batch))
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()  # it refuses to see a module a second time
                if case.inference:
                    inference_step(case, model, batch)
                else:
                    one_step(case, model, batch, optimizer)
        peak = tracker.get_tracker_snapshot("peak")
    return max(int(device["Total"]) for device in peak.values())


def deepspeed_zero2(case: Case) -> int | None:
    if case.inference:
        return None
    return 20 * _count(_meta(case))


def eleuther(case: Case) -> int | None:
    model = _meta(case)
    config = getattr(model, "config", None)
    if config is None or case.inference or not hasattr(config, "num_attention_heads"):
        return None
    if "input_ids" not in case.batch:
        return None
    ids = case.batch["input_ids"]
    b, s, h = *ids.shape, config.hidden_size
    half = case.precision != "fp32"
    layer = s * b * h * (34 + 5 * config.num_attention_heads * s / h) * (1 if half else 2)
    return int(_count(model) * (18 if half else 16) + config.num_hidden_layers * layer)


PEERS: dict[str, Callable[[Case], int | None]] = {
    "accelerate": accelerate,
    "torchinfo": torchinfo,
    "MemTracker": mem_tracker,
    "DeepSpeed": deepspeed_zero2,
    "EleutherAI": eleuther,
}


def _meta(case: Case) -> torch.nn.Module:
    with torch.device("meta"):
        return case.model()


def _weights(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _states(case: Case, model: torch.nn.Module) -> int:
    if case.optimizer is None:
        return 0
    optimizer = case.optimizer([p for p in model.parameters() if p.requires_grad])
    momentum = optimizer.param_groups[0].get("momentum", 0)
    return STATES.get(type(optimizer).__name__, 0) + (1 if momentum else 0)


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def _tensors(batch: Any) -> list[torch.Tensor]:
    values = batch.values() if isinstance(batch, dict) else _listed(batch)
    return [value for value in values if isinstance(value, torch.Tensor)]


def _listed(batch: Any) -> list[Any]:
    return list(batch) if isinstance(batch, tuple | list) else [batch]
