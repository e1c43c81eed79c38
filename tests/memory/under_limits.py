"""What a fresh process sees of real data limits, as JSON: run by the fixture of the same name.

A limit that does not go away would spoil every later test, and what malloc keeps mapped after
earlier tests would change what a limit leaves. The parts run in this order; each ends without a
limit, except for the last.
"""

from __future__ import annotations

import json
import resource
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import mpskit
from mpskit import is_oom, limit_memory
from mpskit._base.sizes import GIB, MIB
from mpskit.errors import MpskitError
from mpskit.memory import limit as limits
from mpskit.memory.cpu_use import CpuUse
from mpskit.system.memory import restart_peak, status_bytes


def soft() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def block(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


def search() -> dict[str, Any]:
    """Return the size found and those tried, where at most 100 items of 2 MiB fit."""
    tried = []

    def train(batch_size: int) -> int:
        tried.append(batch_size)
        weight = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        kept = [block(2 * MIB) for _ in range(batch_size)]
        (weight * len(kept)).backward()
        optimizer.step()
        return batch_size

    train(1)  # the libraries that a first step loads are no need of the second
    del tried[:]
    with limit_memory(status_bytes("VmData") + 200 * MIB, "cpu"):
        return {"size": mpskit.run_with_batch_size(train, 300), "tried": tried}


def peak() -> int | None:
    """Return what a step of 32 MiB needs after one of 48 MiB, both of them over."""
    with limit_memory(status_bytes("VmData") + GIB, "cpu"):
        block(48 * MIB)
        use = CpuUse.now()
        block(32 * MIB)
        return use.needed()


def room() -> int:
    with limit_memory(status_bytes("VmData") + 100 * MIB, "cpu"):
        return CpuUse.now().room


def nested() -> dict[str, Any]:
    seen: dict[str, Any] = {"before": soft()}
    with limit_memory("2GiB", "cpu") as limit:
        seen |= {"outer": soft(), "told": limit.limit_bytes, "previous": limit.previous_bytes}
        try:
            torch.empty(3 * GIB, dtype=torch.uint8)
        except RuntimeError as error:
            seen["is_oom"] = is_oom(error)
        with limit_memory("1GiB", "cpu"):
            seen["inner"] = soft()
        seen["outer again"] = soft()
    return seen | {"after": soft(), "fits": torch.empty(3 * GIB, dtype=torch.uint8).numel()}


def after_an_estimate() -> list[int]:
    """Allocate under a limit that an estimate's reserved addresses would exceed."""
    mpskit.estimate_training_memory(
        lambda: nn.Linear(64, 64), mpskit.TensorSpec((8, 64)), device="mps"
    )
    with limit_memory("90%", "cpu"):
        return [len(bytearray(10**8)), torch.ones(25_000_000).numel()]


def ignored() -> dict[str, Any]:
    """Return the error on a kernel that maps more than the limit, and the limits around it."""
    before, kept = soft(), limits.can_map
    limits.can_map = lambda size: True
    try:
        return {"error": error_of("12GiB"), "before": before, "after": soft()}
    finally:
        limits.can_map = kept


def above_the_hard_limit() -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_DATA, (4 * GIB, 4 * GIB))
    return {"error": error_of("6GiB"), "after": soft()}


def error_of(limit: str) -> list[str]:
    try:
        limit_memory(limit, "cpu")
    except MpskitError as error:
        return [type(error).__name__, str(error)]
    return []


def told(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    parts: list[Callable[[], Any]] = [search, peak, room] if restart_peak() else []
    parts += [nested, after_an_estimate, ignored, above_the_hard_limit]
    print(json.dumps({part.__name__: told(part) for part in parts}))
