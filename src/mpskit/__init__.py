"""PyTorch device selection and memory policy, Apple silicon first.

>>> from mpskit import get_optimal_device
>>> device, info = get_optimal_device()

Importing mpskit imports neither torch nor pydantic nor psutil and changes nothing: every public
name is resolved when it is first used (PEP 562).
"""

from __future__ import annotations

from mpskit._base.lazy import resolver

TYPE_CHECKING = False  # importing typing would cost more than the rest of this file

if TYPE_CHECKING:
    from typing import Any

    from mpskit.correctness.check_device import (
        CheckReport,
        check_device,
    )
    from mpskit.correctness.divergence import (
        Divergence,
        find_divergence,
    )
    from mpskit.correctness.known_issues import (
        known_issues,
    )
    from mpskit.device import (
        DeviceInfo,
        get_optimal_device,
    )
    from mpskit.environment import (
        configure_environment,
        current_environment,
    )
    from mpskit.errors import (
        ArgumentError,
        ArgumentTypeError,
        CheckError,
        DeviceUnavailableError,
        EstimateError,
        MissingExtraError,
        MpskitError,
        MpskitWarning,
        OutOfMemory,
        SettingsError,
        SimulationError,
        TooLateError,
        UnsupportedTorchError,
    )
    from mpskit.estimate import (
        MaxBatch,
        MemoryEstimate,
        TensorSpec,
        estimate_from_config,
        estimate_inference_memory,
        estimate_training_memory,
        max_batch_size,
    )
    from mpskit.host import (
        Host,
        HostKind,
        Machine,
        Readings,
        detect_host,
    )
    from mpskit.integrations.distributed import (
        distributed_backend,
    )
    from mpskit.memory import (
        CacheKeeper,
        CacheReport,
        MemoryBudget,
        MemoryMonitor,
        MemorySnapshot,
        OomFigures,
        empty_cache,
        empty_cache_scope,
        explain_oom,
        is_oom,
        limit_memory,
        memory_budget,
        memory_budget_for,
        memory_snapshot,
        parse_oom,
        run_with_batch_size,
    )
    from mpskit.plan import (
        InferencePlan,
        TrainingPlan,
        plan_inference,
        plan_training,
    )
    from mpskit.rehearsal import (
        Rehearsal,
        rehearse,
    )
    from mpskit.simulation import (
        simulate,
    )
    from mpskit.speed import (
        Comparison,
        Diagnosis,
        Prediction,
        StepTime,
        Workload,
        compare_devices,
        diagnose,
        estimate_time,
        predict_speedup,
        synchronize,
        workload_from_config,
    )
    from mpskit.training.keep_awake import (
        keep_awake,
    )
    from mpskit.training.loader import (
        dataloader_kwargs,
        tune_dataloader,
    )
    from mpskit.training.precision import (
        Precision,
        autocast,
        grad_scaler,
        precision_for,
    )
    from mpskit.training.threads import (
        cpu_threads,
        set_cpu_threads,
    )
    from mpskit.training.transfer import (
        to_device,
    )

    __version__: str

# name -> the module that defines it; type checkers read the imports above instead
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
    "dataloader_kwargs": "mpskit.training.loader",
    "tune_dataloader": "mpskit.training.loader",
    "to_device": "mpskit.training.transfer",
    "Precision": "mpskit.training.precision",
    "autocast": "mpskit.training.precision",
    "grad_scaler": "mpskit.training.precision",
    "precision_for": "mpskit.training.precision",
    "known_issues": "mpskit.correctness.known_issues",
    "CheckReport": "mpskit.correctness.check_device",
    "check_device": "mpskit.correctness.check_device",
    "Divergence": "mpskit.correctness.divergence",
    "find_divergence": "mpskit.correctness.divergence",
    "distributed_backend": "mpskit.integrations.distributed",
    "cpu_threads": "mpskit.training.threads",
    "set_cpu_threads": "mpskit.training.threads",
    "keep_awake": "mpskit.training.keep_awake",
    "MaxBatch": "mpskit.estimate",
    "MemoryEstimate": "mpskit.estimate",
    "TensorSpec": "mpskit.estimate",
    "estimate_from_config": "mpskit.estimate",
    "estimate_inference_memory": "mpskit.estimate",
    "estimate_training_memory": "mpskit.estimate",
    "max_batch_size": "mpskit.estimate",
    "InferencePlan": "mpskit.plan",
    "TrainingPlan": "mpskit.plan",
    "plan_inference": "mpskit.plan",
    "plan_training": "mpskit.plan",
    "Rehearsal": "mpskit.rehearsal",
    "rehearse": "mpskit.rehearsal",
    "simulate": "mpskit.simulation",
    "Comparison": "mpskit.speed",
    "Diagnosis": "mpskit.speed",
    "Prediction": "mpskit.speed",
    "compare_devices": "mpskit.speed",
    "diagnose": "mpskit.speed",
    "Workload": "mpskit.speed",
    "StepTime": "mpskit.speed",
    "estimate_time": "mpskit.speed",
    "predict_speedup": "mpskit.speed",
    "synchronize": "mpskit.speed",
    "workload_from_config": "mpskit.speed",
}
_ERRORS = (
    "ArgumentError",
    "ArgumentTypeError",
    "CheckError",
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

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CacheKeeper",
    "CacheReport",
    "CheckError",
    "CheckReport",
    "Comparison",
    "DeviceInfo",
    "DeviceUnavailableError",
    "Diagnosis",
    "Divergence",
    "EstimateError",
    "Host",
    "HostKind",
    "InferencePlan",
    "Machine",
    "MaxBatch",
    "MemoryBudget",
    "MemoryEstimate",
    "MemoryMonitor",
    "MemorySnapshot",
    "MissingExtraError",
    "MpskitError",
    "MpskitWarning",
    "OomFigures",
    "OutOfMemory",
    "Precision",
    "Prediction",
    "Readings",
    "Rehearsal",
    "SettingsError",
    "SimulationError",
    "StepTime",
    "TensorSpec",
    "TooLateError",
    "TrainingPlan",
    "UnsupportedTorchError",
    "Workload",
    "__version__",
    "autocast",
    "check_device",
    "compare_devices",
    "configure_environment",
    "cpu_threads",
    "current_environment",
    "dataloader_kwargs",
    "detect_host",
    "diagnose",
    "distributed_backend",
    "empty_cache",
    "empty_cache_scope",
    "estimate_from_config",
    "estimate_inference_memory",
    "estimate_time",
    "estimate_training_memory",
    "explain_oom",
    "find_divergence",
    "get_optimal_device",
    "grad_scaler",
    "is_oom",
    "keep_awake",
    "known_issues",
    "limit_memory",
    "max_batch_size",
    "memory_budget",
    "memory_budget_for",
    "memory_snapshot",
    "parse_oom",
    "plan_inference",
    "plan_training",
    "precision_for",
    "predict_speedup",
    "rehearse",
    "run_with_batch_size",
    "set_cpu_threads",
    "simulate",
    "synchronize",
    "to_device",
    "tune_dataloader",
    "workload_from_config",
]

_resolve = resolver(__name__, _PUBLIC)


if not TYPE_CHECKING:  # to a type checker it would mean that any name is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("mpskit")
        return _resolve(name)


def __dir__() -> list[str]:
    return list(__all__)
