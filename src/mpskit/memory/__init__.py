"""Memory: how much there is, how much is used, clearing it, and what to do when it runs out.

Names are resolved when they are first used (PEP 562), so that a budget for another machine is
worked out without importing torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# name -> the module that defines it
_PUBLIC = {
    "MemoryBudget": "mpskit.memory.budget",
    "MemoryUser": "mpskit.memory.budget",
    "memory_budget": "mpskit.memory.budget",
    "memory_budget_for": "mpskit.memory.budget",
    "MemorySnapshot": "mpskit.memory.snapshot",
    "memory_snapshot": "mpskit.memory.snapshot",
    "MemoryMonitor": "mpskit.memory.monitor",
    "MemoryLimit": "mpskit.memory.limits",
    "limit_memory": "mpskit.memory.limits",
    "CacheReport": "mpskit.memory.cache",
    "empty_cache": "mpskit.memory.cache",
    "CacheKeeper": "mpskit.memory.scope",
    "empty_cache_scope": "mpskit.memory.scope",
    "OomExplanation": "mpskit.memory.oom",
    "OomFigures": "mpskit.memory.oom",
    "explain_oom": "mpskit.memory.oom",
    "is_oom": "mpskit.memory.oom",
    "parse_oom": "mpskit.memory.oom",
    "next_batch_size": "mpskit.memory.retry",
    "run_with_batch_size": "mpskit.memory.retry",
    "WorkingSet": "mpskit.memory.working_set",
    "recommended_bytes": "mpskit.memory.working_set",
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
