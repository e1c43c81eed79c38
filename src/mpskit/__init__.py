"""PyTorch device selection and memory policy, Apple silicon first.

>>> from mpskit import get_optimal_device
>>> device, info = get_optimal_device()

Importing mpskit imports neither torch nor pydantic nor psutil and changes nothing: every public
name is resolved when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

logging.getLogger(__name__).addHandler(logging.NullHandler())

# name -> the module that defines it
_PUBLIC = {
    "Host": "mpskit.host",
    "HostKind": "mpskit.host",
    "Machine": "mpskit.host",
    "Readings": "mpskit.host",
    "detect_host": "mpskit.host",
    "DeviceInfo": "mpskit.device",
    "get_optimal_device": "mpskit.device",
    "CacheKeeper": "mpskit.memory",
    "CacheReport": "mpskit.memory",
    "MemoryBudget": "mpskit.memory",
    "MemoryMonitor": "mpskit.memory",
    "MemorySnapshot": "mpskit.memory",
    "OomFigures": "mpskit.memory",
    "empty_cache": "mpskit.memory",
    "empty_cache_scope": "mpskit.memory",
    "explain_oom": "mpskit.memory",
    "is_oom": "mpskit.memory",
    "limit_memory": "mpskit.memory",
    "memory_budget": "mpskit.memory",
    "memory_budget_for": "mpskit.memory",
    "memory_snapshot": "mpskit.memory",
    "parse_oom": "mpskit.memory",
    "run_with_batch_size": "mpskit.memory",
    "configure_environment": "mpskit.environment",
    "current_environment": "mpskit.environment",
    "dataloader_kwargs": "mpskit.dataloader",
    "tune_dataloader": "mpskit.dataloader",
    "to_device": "mpskit.transfer",
    "Precision": "mpskit.precision",
    "autocast": "mpskit.precision",
    "grad_scaler": "mpskit.precision",
    "precision_for": "mpskit.precision",
    "known_issues": "mpskit._known_issues",
    "cpu_threads": "mpskit.threads",
    "set_cpu_threads": "mpskit.threads",
    "keep_awake": "mpskit.power",
    "MemoryEstimate": "mpskit.estimate",
    "TensorSpec": "mpskit.estimate",
    "estimate_from_config": "mpskit.estimate",
    "estimate_inference_memory": "mpskit.estimate",
    "estimate_training_memory": "mpskit.estimate",
    "simulate": "mpskit.simulation",
}
_ERRORS = (
    "ArgumentError",
    "ArgumentTypeError",
    "DeviceUnavailableError",
    "EstimateError",
    "MissingExtraError",
    "MpskitError",
    "MpskitWarning",
    "OutOfMemory",
    "SettingsError",
    "SimulationError",
    "TooLateError",
    "UnsupportedTorchError",
)
_PUBLIC |= dict.fromkeys(_ERRORS, "mpskit.errors")

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("mpskit")
    elif name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
