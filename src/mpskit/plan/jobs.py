"""The model that a plan is for: from a config or a module, estimated and counted at any setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from mpskit._base.arguments import check_count, wrong_type
from mpskit.errors import ArgumentError
from mpskit.estimate.api import estimate_inference_memory, estimate_training_memory
from mpskit.estimate.from_config import estimate_from_config
from mpskit.estimate.max_batch import batch_of
from mpskit.estimate.models import bundled_models, find_model
from mpskit.estimate.reference.config import Shape, read_config, read_shape
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.trace.optimizers import optimizer_class
from mpskit.plan.defaults import defaults
from mpskit.plan.search import Estimates
from mpskit.plan.settings import Setting
from mpskit.speed.count_config import workload_from_config
from mpskit.speed.workload import Workload

__all__ = [
    "Job",
    "Model",
    "config_job",
    "generation_job",
    "is_config",
    "module_job",
    "smaller_models",
]

Model = Any
"""A config (mapping, path, bundled name), or a module, its class, or a callable that makes it."""


@dataclass
class Job:
    """A model whose settings can be estimated.

    Attributes:
        name: of the model, for a person.
        estimates: on one kind of device, made once each.
        count: returns what a setting's step computes, counted once.
        lengths: sequence lengths to try, the longest first; None alone for a module.
        targets: names of the modules that adapters are on; empty where there are none.
        parameters: of the model; None if unknown.
        checkpoints: whether its activations can be recomputed.
        adapts: whether it can have adapters.
        shape: of a transformer; None for a module.
        on: returns the same job for another kind of device, each made once.
        like: returns the same job for another bundled model; None for a module.
    """

    name: str
    estimates: Estimates
    count: Callable[[Setting], Workload]
    lengths: tuple[int | None, ...]
    targets: tuple[str, ...]
    parameters: int | None
    checkpoints: bool
    adapts: bool
    shape: Shape | None
    on: Callable[[str], Job]
    like: Callable[[str], Job] | None


def is_config(model: Model) -> bool:
    """Return whether a model is given by its config."""
    return isinstance(model, str | Path | Mapping)


def config_job(config: Any, device: str, *, seq_len: int | None = None) -> Job:
    """Return the job of training a transformer from its config.

    Args:
        config: as :func:`mpskit.estimate_from_config` takes it; a bundled model's short name too.
        device: the target.
        seq_len: tokens in a row; None tries the usual lengths.

    Raises:
        ArgumentError: no such model (near names are listed), or a config that is not modelled.
        ArgumentTypeError: an argument of the wrong type.
    """
    found = _named(config)
    lengths = _lengths("seq_len", seq_len, defaults("sequence")["lengths"], found)
    shape = read_shape(found, tokens=min(lengths))
    roles = dict(zip(("query", "key", "value"), shape.columns["roles"], strict=False))
    targets = tuple(dict.fromkeys(roles[role] for role in ("query", "value") if roles[role]))
    return Job(
        name=_name(found),
        estimates=Estimates(partial(_estimate, found, device)),
        count=cache(partial(_count, found, device)),
        lengths=lengths,
        targets=targets,
        parameters=_parameters(found),
        checkpoints=True,
        adapts=bool(targets),
        shape=shape,
        on=cache(lambda other: config_job(config, other, seq_len=seq_len)),
        like=lambda name: config_job(name, device, seq_len=seq_len),
    )


def generation_job(config: Any, device: str, *, context: int | None = None) -> Job:
    """Return the job of running a transformer from its config; a decoder generates.

    Args:
        config: as for :func:`config_job`.
        device: the target.
        context: tokens of prompt and answer; None tries the usual lengths.

    Raises:
        ArgumentError, ArgumentTypeError: as for :func:`config_job`.
    """
    found = _named(config)
    lengths = _lengths("context", context, defaults("context")["lengths"], found)
    shape = read_shape(found, tokens=min(lengths))
    decodes = shape.columns["stacks"] == "decoder"
    return Job(
        name=_name(found),
        estimates=Estimates(partial(_estimate_generation, found, device, decodes)),
        count=cache(partial(_count_token, found, device, decodes)),
        lengths=lengths,
        targets=(),
        parameters=_parameters(found),
        checkpoints=False,
        adapts=False,
        shape=shape,
        on=cache(lambda other: generation_job(config, other, context=context)),
        like=lambda name: generation_job(name, device, context=context),
    )


def _lengths(name: str, asked: int | None, usual: Sequence[int], config: Any) -> tuple[int, ...]:
    """Return the lengths to try: the one asked for, or those usual that the model can see."""
    if asked is not None:
        check_count(name, asked, least=1)
        return (asked,)
    most = read_shape(config, tokens=1).most_tokens
    return tuple(length for length in usual if most is None or length <= most) or (most or 1,)


def _name(config: Any) -> str:
    return config if isinstance(config, str) else str(read_config(config).get("model_type"))


def _parameters(config: Any) -> int | None:
    known = read_config(config).get("parameters")
    return known if isinstance(known, int) else None


def _named(config: Any) -> Any:
    """Return a bundled model's full name for a short one; a path or a mapping as it is."""
    if not isinstance(config, str) or config.endswith(".json") or _exists(config):
        return str(config) if isinstance(config, Path) else config
    return find_model(config)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a name, or not one: the text of a config
        return False


def _arguments(setting: Setting) -> dict[str, Any]:
    return {
        "batch_size": setting.rows,
        "seq_len": setting.seq_len or 1,
        "lora": _adapters(setting),
        "precision": setting.precision,
        "optimizer": setting.optimizer,
        "accumulate": setting.accumulate,
        "checkpointing": setting.checkpointing,
    }


def _adapters(setting: Setting) -> dict[str, Any] | None:
    if setting.rank is None:
        return None
    targets = list(setting.targets) or None
    return {"rank": setting.rank, "targets": targets, "dropout": setting.dropout}


def _estimate(config: Any, device: str, setting: Setting) -> MemoryEstimate:
    return estimate_from_config(
        config,
        base=setting.base,
        device=device,
        world_size=setting.world_size,
        sharding=setting.sharding,
        **_arguments(setting),
    )


def _count(config: Any, device: str, setting: Setting) -> Workload:
    """Count one batch and what each further one adds, rather than trace every batch of a step."""

    def counted(accumulate: int) -> Workload:
        asked = {**_arguments(setting), "accumulate": accumulate}
        return workload_from_config(config, base=setting.base, device=device, **asked)

    once = counted(1)
    if setting.accumulate == 1:
        return once
    return _times(once, setting.accumulate, counted(2))


def _estimate_generation(
    config: Any, device: str, decodes: bool, setting: Setting
) -> MemoryEstimate:
    """Estimate a prompt of half the context and its answer; an encoder sees the whole at once."""
    context = setting.seq_len or 1
    return estimate_from_config(
        config,
        batch_size=setting.rows,
        seq_len=max(context // 2, 1) if decodes else context,
        cache_len=context if decodes else None,
        training=False,
        precision=setting.precision,
        base=setting.base,
        device=device,
    )


def _count_token(config: Any, device: str, decodes: bool, setting: Setting) -> Workload:
    """Count the last token of the answer, which reads the longest cache; or the encoder's pass."""
    context = setting.seq_len or 1
    return workload_from_config(
        config,
        batch_size=setting.rows,
        seq_len=1 if decodes else context,
        cached_tokens=context - 1 if decodes else 0,
        training=False,
        precision=setting.precision,
        device=device,
    )


def module_job(model: Any, batch: Any, device: str, *, training: bool = True) -> Job:
    """Return the job of a module with one batch of its data.

    Args:
        model: a module, its class, or a callable that makes it.
        batch: tensors or :class:`mpskit.TensorSpec`, nested, the leading size of each being the
            rows; or a callable that makes a batch of as many rows as it is given.
        device: the target.
        training: whether it is trained.

    Raises:
        ArgumentError: there is no batch.
        ArgumentTypeError: ``model`` is no model.
    """
    if not callable(model):
        raise wrong_type("a model", "a config, a module, its class or a callable", model)
    if batch is None:
        raise ArgumentError(
            "a module needs batch=, tensors or TensorSpec: their leading size is the rows",
            given=batch,
        )
    rows = batch_of(batch)
    return Job(
        name=getattr(model, "__name__", type(model).__name__),
        estimates=Estimates(partial(_estimate_module, model, rows, device, training)),
        count=cache(partial(_count_module, model, rows, training)),
        lengths=(None,),
        targets=(),
        parameters=None,
        checkpoints=False,
        adapts=False,
        shape=None,
        on=cache(lambda other: module_job(model, batch, other, training=training)),
        like=None,
    )


def _estimate_module(
    model: Any, rows: Callable[[int], Any], device: str, training: bool, setting: Setting
) -> MemoryEstimate:
    batch = rows(setting.rows)
    if not training:
        return estimate_inference_memory(model, batch, precision=setting.precision, device=device)
    if setting.sharding == "fsdp":
        raise ArgumentError("fully_shard is estimated for a transformer's config", given=setting)
    return estimate_training_memory(
        model,
        batch,
        optimizer=optimizer_class(setting.optimizer),
        precision=setting.precision,
        accumulate=setting.accumulate,
        device=device,
        world_size=setting.world_size,
    )


def _count_module(
    model: Any, rows: Callable[[int], Any], training: bool, setting: Setting
) -> Workload:
    once = Workload.of(
        model,
        rows(setting.rows),
        optimizer=optimizer_class(setting.optimizer) if training else None,
        precision=setting.precision,
        training=training,
    )
    return _times(once, setting.accumulate)


def _times(once: Workload, count: int, twice: Workload | None = None) -> Workload:
    """Return the counts of a step of so many batches.

    Args:
        once: of one batch.
        count: the batches.
        twice: of two, which tell what a further one adds; None where that is all of the first.
    """
    grown = {}
    for name in ("flops", "bytes_moved", "launches"):
        first = getattr(once, name)
        if first is not None:
            more = first if twice is None else getattr(twice, name) - first
            grown[name] = first + (count - 1) * more
    return once.model_copy(update=grown)


def smaller_models(name: str, job: Job) -> list[str]:
    """Return the smaller bundled models of the same family: its owner's first, largest first."""
    models = bundled_models()
    if job.parameters is None or name not in models:
        return []
    family = models[name]["model_type"]
    smaller = {
        other: int(config["parameters"])
        for other, config in models.items()
        if config["model_type"] == family and config["parameters"] < job.parameters
    }
    owner = name.partition("/")[0]
    return sorted(smaller, key=lambda other: (not other.startswith(owner), -smaller[other]))
