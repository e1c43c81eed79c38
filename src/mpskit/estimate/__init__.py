"""How much memory a step will take, before it runs, on the allocator of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.lazy import resolver

if TYPE_CHECKING:
    from mpskit.estimate.api import estimate_inference_memory, estimate_training_memory
    from mpskit.estimate.from_config import estimate_from_config
    from mpskit.estimate.max_batch import MaxBatch, max_batch_size
    from mpskit.estimate.result import (
        Difference,
        MemoryEstimate,
        ModuleUse,
        Peak,
        TimelinePoint,
        Verdict,
    )
    from mpskit.estimate.specs import TensorSpec

_PUBLIC = {
    "Difference": "mpskit.estimate.result",
    "MaxBatch": "mpskit.estimate.max_batch",
    "MemoryEstimate": "mpskit.estimate.result",
    "ModuleUse": "mpskit.estimate.result",
    "Peak": "mpskit.estimate.result",
    "TimelinePoint": "mpskit.estimate.result",
    "Verdict": "mpskit.estimate.result",
    "TensorSpec": "mpskit.estimate.specs",
    "estimate_from_config": "mpskit.estimate.from_config",
    "estimate_inference_memory": "mpskit.estimate.api",
    "estimate_training_memory": "mpskit.estimate.api",
    "max_batch_size": "mpskit.estimate.max_batch",
}

__all__ = [
    "Difference",
    "MaxBatch",
    "MemoryEstimate",
    "ModuleUse",
    "Peak",
    "TensorSpec",
    "TimelinePoint",
    "Verdict",
    "estimate_from_config",
    "estimate_inference_memory",
    "estimate_training_memory",
    "max_batch_size",
]

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return list(__all__)
