"""A made-up model: what its settings need is a function of the test, and nothing is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpskit.errors import EstimateError
from mpskit.estimate.result import MemoryEstimate
from mpskit.plan.jobs import Job
from mpskit.plan.search import Estimates, Found
from mpskit.plan.settings import Setting
from mpskit.speed.workload import Workload

GIB, MIB = 2**30, 2**20


def need(size: int) -> MemoryEstimate:
    """Return an estimate of so many bytes."""
    return MemoryEstimate(
        device="mps",
        torch_version="2.13.0",
        parameters_bytes=size,
        peak_bytes=size,
        driver_bytes=size,
    )


def found(setting: Setting, size: int, usable: int) -> Found:
    """Return a setting that needs ``size`` bytes of ``usable``."""
    return Found(setting, need(size), need(size).fits(usable))


def job(size: Callable[[Setting], int | None] = lambda _: MIB, **fields: Any) -> Job:
    """Return a job whose settings need what ``size`` says; None is refused."""

    def make(setting: Setting) -> MemoryEstimate:
        bytes_ = size(setting)
        if bytes_ is None:
            raise EstimateError("refused", given=setting)
        return need(bytes_)

    def count(setting: Setting) -> Workload:
        return Workload(
            flops=1e12 * setting.rows,
            bytes_moved=1e10 * setting.rows,
            launches=1000,
            dtype="float32",
            op_class="transformer",
            training=True,
        )

    known: dict[str, Any] = {
        "name": "made-up",
        "estimates": Estimates(make),
        "count": count,
        "lengths": (512, 256, 128),
        "targets": ("q_proj",),
        "parameters": 500_000_000,
        "checkpoints": True,
        "adapts": True,
        "shape": None,
        "on": lambda _: made,
        "like": None,
    }
    made = Job(**(known | fields))
    return made
