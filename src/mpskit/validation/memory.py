"""Memory: what Metal recommends, how the allocator grows and fails, and estimates of six models."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit.allocator import allocator_for
from mpskit.backends.kinds import ESTIMATED
from mpskit.backends.memory import Backend, backend
from mpskit.estimate.specs import TensorSpec
from mpskit.host import detect_host
from mpskit.memory.limit import limit_memory
from mpskit.memory.oom import is_oom, parse_oom
from mpskit.memory.working_set import rule_of
from mpskit.speed.count import count_with_memory
from mpskit.speed.steps import step_on
from mpskit.validation.claims import compared, near, not_tried
from mpskit.validation.modules import FirstResult
from mpskit.validation.report import Finding

__all__ = ["allocator", "estimates", "out_of_memory", "working_set"]

MIB = 1 << 20
# Sizes on both sides of each step of the allocators: small and large heaps, whole buffers.
LADDER = (256, 300 * 1024, MIB, MIB + 1, 5 * MIB, 9 * MIB, 10 * MIB, 12 * MIB, 33 * MIB)
_ESTIMATE_WITHIN = 0.05
_CAP = 256 * MIB


def working_set(device: str) -> Iterator[Finding]:
    """Metal's recommended working set and largest buffer against the rule."""
    check, asked = "working-set", backend(device)
    rule = rule_of(detect_host())
    found = asked.recommended_bytes()
    if rule is None or found is None:
        yield not_tried(check, "the recommended working set", "torch does not tell it here")
        return
    yield compared(check, "the recommended working set", rule.recommended_bytes, found)
    largest = asked.max_buffer_bytes()
    if largest is None or rule.max_buffer_bytes is None:
        yield not_tried(check, "the largest buffer", "nothing tells it here")
    else:
        yield compared(check, "the largest buffer", rule.max_buffer_bytes, largest)


def allocator(device: str) -> Iterator[Finding]:
    """What the allocator holds after each of some allocations, against its model."""
    check, asked = "allocator", backend(device)
    kind = torch.device(device).type
    if kind not in ESTIMATED or asked.reserved_bytes() is None or kind == "cpu":
        yield not_tried(check, "the allocator's growth", f"{device} has no model or tells nothing")
        return
    _emptied(asked)
    model = allocator_for(kind, torch_version=torch.__version__)
    before = (asked.allocated_bytes() or 0, asked.reserved_bytes() or 0)
    kept: list[torch.Tensor] = []
    for size in LADDER:
        kept.append(torch.empty(size, dtype=torch.uint8, device=device))
        model.allocate(size)
        live = (asked.allocated_bytes() or 0) - before[0]
        held = (asked.reserved_bytes() or 0) - before[1]
        yield compared(check, f"live bytes after {size} more", model.live_bytes, live)
        yield compared(check, f"held bytes after {size} more", model.heap_bytes, held)
    del kept
    _emptied(asked)


def out_of_memory(device: str) -> Iterator[Finding]:
    """An out-of-memory error, provoked under a small cap: whether it is known, and its figures."""
    check, claim = "out-of-memory", "an error under a cap of 256 MiB"
    if torch.device(device).type == "cpu":
        yield not_tried(check, claim, "the CPU has no allocator with a limit")
        return
    error = _provoked(device)
    if error is None:
        yield not_tried(check, claim, "no error came")
        return
    figures = parse_oom(error)
    kind = torch.device(device).type
    yield compared(check, f"{claim} is known as one", True, is_oom(error))
    yield compared(check, "its backend", kind, figures.backend)
    yield compared(check, "its request", 2 * _CAP, figures.requested)


def _provoked(device: str) -> BaseException | None:
    try:
        with limit_memory(_CAP, device=device):
            torch.empty(2 * _CAP, dtype=torch.uint8, device=device)
    except (RuntimeError, MemoryError) as error:
        return error
    return None


def _mlp() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512)
    )


def _cnn() -> torch.nn.Module:
    layers = (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(16, 16, 3, padding=1))


def _encoder() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2)


def _embedding() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Embedding(2000, 128), torch.nn.Linear(128, 2000))


Job = tuple[Callable[[], torch.nn.Module], Any, str]
MODELS: dict[str, Job] = {
    "a perceptron": (_mlp, TensorSpec((256, 512)), "AdamW"),
    "a convolutional network": (_cnn, TensorSpec((4, 16, 64, 64)), "SGD"),
    "an LSTM": (
        lambda: FirstResult(torch.nn.LSTM(64, 128, batch_first=True)),
        TensorSpec((16, 64, 64)),
        "Adam",
    ),
    "a transformer encoder": (_encoder, TensorSpec((4, 128, 128)), "AdamW"),
    "an embedding": (_embedding, TensorSpec((8, 64), dtype="int64"), "AdamW"),
    "an attention layer": (
        lambda: torch.nn.TransformerDecoderLayer(128, 4, 256, batch_first=True),
        (TensorSpec((4, 64, 128)), TensorSpec((4, 64, 128))),
        "SGD",
    ),
}


def estimates(device: str) -> Iterator[Finding]:
    """The estimated peak of six models' training steps against the measured one."""
    check, kind = "estimates", torch.device(device).type
    for name, (make, batch, optimizer) in MODELS.items():
        claim = f"the peak of training {name}"
        if kind not in ESTIMATED or kind == "cpu":
            yield not_tried(check, claim, f"the memory of {device} is not told while a step runs")
            continue
        step = functools.partial(_loss, batch)
        _, estimate = count_with_memory(make, batch, step=step, optimizer=optimizer, device=kind)
        found = _measured(device, make, batch, step, optimizer)
        yield near(check, claim, estimate.peak_bytes, found, within=_ESTIMATE_WITHIN)


def _loss(_spec: Any, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    result = model(*batch) if isinstance(batch, tuple) else model(batch)
    return torch.as_tensor(result.square().mean())


def _measured(
    device: str, make: Callable[[], torch.nn.Module], batch: Any, loss: Any, optimizer: str
) -> int:
    """Return the most that tensors held during two steps."""
    asked = backend(device)
    _emptied(asked)
    before = asked.allocated_bytes() or 0
    step = step_on(device, make, batch, step=loss, optimizer=optimizer)
    peak = _Peak(asked)
    with peak:
        step()
        step()
    return peak.most - before


class _Peak(TorchDispatchMode):
    """The most that tensors hold, looked at after every operator."""

    def __init__(self, asked: Backend) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types there
        self._asked = asked
        self.most: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, self._asked.allocated_bytes() or 0)
        return result


def _emptied(asked: Backend) -> None:
    gc.collect()
    asked.synchronize()
    asked.empty_cache()
