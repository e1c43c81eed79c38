"""How much memory a step will take, before it runs, on the allocator of the target."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Difference": "mpskit.estimate.result",
    "MemoryEstimate": "mpskit.estimate.result",
    "ModuleUse": "mpskit.estimate.result",
    "Peak": "mpskit.estimate.result",
    "TimelinePoint": "mpskit.estimate.result",
    "Verdict": "mpskit.estimate.result",
    "TensorSpec": "mpskit.estimate.specs",
    "estimate_from_config": "mpskit.estimate.from_config",
    "estimate_inference_memory": "mpskit.estimate._estimate",
    "estimate_training_memory": "mpskit.estimate._estimate",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
