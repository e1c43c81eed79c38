"""Times of a dozen steps on CPU and GPU against the prediction, and the DataLoader's arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpskit.estimate.specs import TensorSpec
from mpskit.host import detect_host
from mpskit.speed.count import count_step
from mpskit.speed.predict import predict_speedup
from mpskit.speed.steps import step_on
from mpskit.speed.timing import time_in_turn
from mpskit.system.machine import replaced_readings
from mpskit.training.loader import dataloader_kwargs
from mpskit.validation.claims import compared, not_tried
from mpskit.validation.modules import FirstResult
from mpskit.validation.report import Finding, Outcome

__all__ = ["loader", "times"]

_SECONDS = 0.4
_CLOSE = 1.25  # below this ratio either device is as good


def _mlp(width: int, depth: int) -> torch.nn.Module:
    layers = (torch.nn.Linear(width, width), torch.nn.ReLU())
    return torch.nn.Sequential(*(layer for _ in range(depth) for layer in layers))


def _cnn(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        *[torch.nn.Conv2d(width, width, 3, padding=1) for _ in range(4)],
    )


def _encoder(width: int, depth: int) -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
    return torch.nn.TransformerEncoder(layer, depth)


def _lstm() -> torch.nn.Module:
    return FirstResult(torch.nn.LSTM(64, 64, batch_first=True))


Work = tuple[Callable[[], torch.nn.Module], TensorSpec]
WORKLOADS: dict[str, Work] = {
    "perceptron, 32 wide": (functools.partial(_mlp, 32, 3), TensorSpec((32, 32))),
    "perceptron, 512 wide": (functools.partial(_mlp, 512, 3), TensorSpec((256, 512))),
    "perceptron, 2048 wide": (functools.partial(_mlp, 2048, 2), TensorSpec((512, 2048))),
    "convolutions, 16 channels": (functools.partial(_cnn, 16), TensorSpec((4, 16, 32, 32))),
    "convolutions, 64 channels": (functools.partial(_cnn, 64), TensorSpec((8, 64, 64, 64))),
    "transformer, 64 wide": (functools.partial(_encoder, 64, 2), TensorSpec((4, 64, 64))),
    "transformer, 256 wide": (functools.partial(_encoder, 256, 4), TensorSpec((8, 128, 256))),
    "LSTM": (_lstm, TensorSpec((16, 50, 64))),
}


def times(device: str) -> Iterator[Finding]:
    """Training and inference on both devices: whether a sure prediction names the faster one."""
    check, claim = "times", "times on the CPU and on MPS"
    if torch.device(device).type != "mps":
        yield not_tried(check, claim, "the prediction is of MPS")
        return
    if replaced_readings() is not None:
        yield not_tried(check, claim, "a simulated machine has no times of its own")
        return
    for name, (make, batch) in WORKLOADS.items():
        for training in (True, False) if name in _ALSO_CALLED else (True,):
            what = f"{'training' if training else 'calling'} {name}"
            yield _timed(check, what, device, make, batch, training=training)


_ALSO_CALLED = frozenset({*list(WORKLOADS)[:4]})


def _timed(
    check: str,
    claim: str,
    device: str,
    make: Callable[[], torch.nn.Module],
    batch: Any,
    *,
    training: bool,
) -> Finding:
    workload = count_step(make, batch, training=training)
    predicted = predict_speedup(workload, detect_host().chip)
    steps = {
        name: step_on(name, make, batch, step=_mean if training else None, training=training)
        for name in ("cpu", device)
    }
    taken = time_in_turn(steps, seconds=_SECONDS)
    ratio = taken["cpu"].median / taken[device].median
    said, found = f"{predicted.mps_speedup:.2f}", f"{ratio:.2f} (CPU time / MPS time)"
    right = (predicted.mps_speedup > 1) == (ratio > 1) or 1 / _CLOSE < ratio < _CLOSE
    sure = "sure" if predicted.sure else "not sure"
    outcome = Outcome.HELD if right or not predicted.sure else Outcome.DID_NOT_HOLD
    return Finding(
        check=check, claim=claim, outcome=outcome, said=f"{said}, {sure}", found=f"{found}; {said}"
    )


def _mean(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.as_tensor(model(batch).square().mean())


def loader(device: str) -> Iterator[Finding]:
    """A DataLoader with the recommended arguments gives all its batches."""
    data = torch.utils.data.TensorDataset(torch.arange(64.0))
    kwargs = dataloader_kwargs(device, batch_size=16, num_workers=0, dataset=data)
    batches = list(torch.utils.data.DataLoader(data, **kwargs))
    found = sorted(float(x) for (batch,) in batches for x in batch.to(device).cpu())
    yield compared("loader", "samples that arrive on the device", 64, len(found))
    yield compared("loader", "the sum of the samples", 2016.0, sum(found))
