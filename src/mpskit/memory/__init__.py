"""Memory: budget, use, cache clearing, limits, and handling out-of-memory errors.

Names are resolved on first use (PEP 562), so that a budget for another machine needs no import of
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.lazy import resolver

if TYPE_CHECKING:
    from mpskit.memory.budget import MemoryBudget, MemoryUser, memory_budget, memory_budget_for
    from mpskit.memory.cache import CacheReport, empty_cache
    from mpskit.memory.cache_scope import CacheKeeper, empty_cache_scope
    from mpskit.memory.limit import MemoryLimit, limit_memory
    from mpskit.memory.monitor import MemoryMonitor
    from mpskit.memory.oom import OomFigures, is_oom, parse_oom
    from mpskit.memory.oom_advice import OomExplanation, explain_oom
    from mpskit.memory.retry import run_with_batch_size
    from mpskit.memory.snapshot import MemorySnapshot, memory_snapshot
    from mpskit.memory.working_set import WorkingSet, recommended_bytes

# name -> the module that defines it
_PUBLIC = {
    "MemoryBudget": "mpskit.memory.budget",
    "MemoryUser": "mpskit.memory.budget",
    "memory_budget": "mpskit.memory.budget",
    "memory_budget_for": "mpskit.memory.budget",
    "MemorySnapshot": "mpskit.memory.snapshot",
    "memory_snapshot": "mpskit.memory.snapshot",
    "MemoryMonitor": "mpskit.memory.monitor",
    "MemoryLimit": "mpskit.memory.limit",
    "limit_memory": "mpskit.memory.limit",
    "CacheReport": "mpskit.memory.cache",
    "empty_cache": "mpskit.memory.cache",
    "CacheKeeper": "mpskit.memory.cache_scope",
    "empty_cache_scope": "mpskit.memory.cache_scope",
    "OomExplanation": "mpskit.memory.oom_advice",
    "OomFigures": "mpskit.memory.oom",
    "explain_oom": "mpskit.memory.oom_advice",
    "is_oom": "mpskit.memory.oom",
    "parse_oom": "mpskit.memory.oom",
    "run_with_batch_size": "mpskit.memory.retry",
    "WorkingSet": "mpskit.memory.working_set",
    "recommended_bytes": "mpskit.memory.working_set",
}

__all__ = [
    "CacheKeeper",
    "CacheReport",
    "MemoryBudget",
    "MemoryLimit",
    "MemoryMonitor",
    "MemorySnapshot",
    "MemoryUser",
    "OomExplanation",
    "OomFigures",
    "WorkingSet",
    "empty_cache",
    "empty_cache_scope",
    "explain_oom",
    "is_oom",
    "limit_memory",
    "memory_budget",
    "memory_budget_for",
    "memory_snapshot",
    "parse_oom",
    "recommended_bytes",
    "run_with_batch_size",
]

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return list(__all__)
