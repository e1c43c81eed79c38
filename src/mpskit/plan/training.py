"""``plan_training``: settings with which a model trains on a machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mpskit._base.arguments import check_count, shown, wrong_type
from mpskit.backends.precisions import PRECISIONS
from mpskit.errors import ArgumentError
from mpskit.estimate.targets import check_processes
from mpskit.plan.common import common_fields, decided, one_of
from mpskit.plan.defaults import (
    STAGES,
    Stage,
    defaults,
    optimizer_for,
    quantizations,
    stage_epochs,
)
from mpskit.plan.jobs import Job, Model, config_job, is_config, module_job
from mpskit.plan.places import Place, find_place
from mpskit.plan.reasons import reasons
from mpskit.plan.result import LoraPlan, TrainingPlan
from mpskit.plan.search import Found, Search
from mpskit.plan.settings import PREFERENCES, Method, Prefer, Setting, Way, batch_sizes, ways
from mpskit.plan.times import cloud_cards, epoch_time, loader_of, stay_local, step_time

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike
    from mpskit.host.named import MachineLike
    from mpskit.memory import MemoryBudget

__all__ = ["Request", "TrainingPlan", "plan_job", "plan_training", "read_request", "training_job"]

_FIXED = ("batch_size", "seq_len", "precision", "base", "checkpointing", "optimizer", "lora")
# What a cap leaves above the estimate: a tenth, as a job that fits has to spare.
_CAP = 1.1
_ALONE = "times are of one process alone, without what it sends to the others"
_SHARES = (
    "the figures are those of fully_shard on each layer and on the model: apply_to(), "
    "to_lightning() and to_accelerate() leave it to you"
)


@dataclass(frozen=True)
class Request:
    """What is asked of a plan, checked.

    Attributes:
        effective: rows of one optimizer step in one process.
        batch: rows of a batch, if that is fixed.
        lora: the adapters, if they are asked for: peft's names or mpskit's.
        method: as for :func:`plan_training`.
        prefer: as there.
        fixed: fields of the setting that are decided.
        optimizer: the name that was asked for.
        stage: as there.
        samples: as there.
        world_size: as there.
    """

    effective: int
    batch: int | None
    lora: Mapping[str, Any] | None
    method: Literal["auto", "lora", "full"]
    prefer: Prefer
    fixed: Mapping[str, Any]
    optimizer: str
    stage: Stage
    samples: int | None
    world_size: int


def plan_training(
    model_or_config: Model,
    *,
    batch: Any = None,
    machine: MachineLike | None = None,
    device: DeviceLike | None = None,
    budget: MemoryBudget | int | str | None = None,
    seq_len: int | None = None,
    effective_batch: int | None = None,
    lora: Mapping[str, Any] | int | None = None,
    method: Literal["auto", "lora", "full"] = "auto",
    prefer: Prefer = "speed",
    fixed: Mapping[str, Any] | None = None,
    optimizer: str | None = None,
    stage: Stage = "development",
    samples: int | None = None,
    world_size: int = 1,
) -> TrainingPlan:
    """Return settings with which a model trains on a machine, each with its reason.

    Ways to store and to compute are compared by estimates: float32, autocast where it is advised, a
    half-precision or quantized base under float32 adapters, each with and without gradient
    checkpointing. The first that fits wins, with the largest batch that divides the effective
    one; a shorter sequence comes before a way that is only tight. (:func:`mpskit.max_batch_size`
    counts a tight batch as well, unless it is asked with ``tight=False``.)

    Args:
        model_or_config: a config as for :func:`mpskit.estimate_from_config`, such as
            ``"Qwen/Qwen2.5-0.5B"``; or a module, its class, or a callable that makes it.
        batch: for a config, the rows of a batch (None chooses them); for a module, its batch:
            tensors or ``TensorSpec``, whose leading size is the rows, or a callable that makes one
            of as many rows as it is given.
        machine: a name (``m1-16gb``, ``T4``), a ``Machine`` or a ``Host``; None is this machine.
        device: ``mps``, ``cuda`` or ``cpu``; None is the machine's own.
        budget: bytes, a size such as ``"12GiB"`` or a ``MemoryBudget``, instead of the machine's.
        seq_len: tokens in a row; None takes 512, or less where that does not fit.
        effective_batch: rows that one optimizer step sees; 8 by default.
        lora: a rank, or peft's ``r``, ``lora_alpha``, ``lora_dropout``, ``target_modules``.
        method: ``lora``, ``full``, or ``auto``: adapters from 300 million parameters on, for a
            config that does not tell them (``"parameters"``; bundled models do), and for a
            smaller model that does not fit whole.
        prefer: ``speed``, or ``fidelity``: what changes the numbers least.
        fixed: settings that are decided: ``batch_size``, ``seq_len``, ``precision``, ``base``,
            ``checkpointing``, ``optimizer``, ``lora``.
        optimizer: of torch.optim or by transformers' name; one that needs CUDA is replaced
            elsewhere. None is AdamW, or Adafactor where only that fits.
        stage: ``development``, ``test`` or ``production``: 3, 5 or 10 epochs.
        samples: rows of the data set, for times of an epoch and of the whole run.
        world_size: processes that train together, on a card each; the effective batch is theirs
            together. ``DistributedDataParallel`` is taken where it fits, ``fully_shard`` where it
            does not.

    Raises:
        ArgumentError: a value that cannot be used, an unknown model, a batch that does not divide
            the effective one, or several processes on MPS.
        ArgumentTypeError: an argument of the wrong type.
        UnknownMachineError: no machine has that name.
        EstimateError: no setting can be estimated.
    """
    request = read_request(
        batch=batch if is_config(model_or_config) else None,
        effective_batch=effective_batch,
        lora=lora,
        method=method,
        prefer=prefer,
        fixed=fixed,
        optimizer=optimizer,
        stage=stage,
        samples=samples,
        world_size=world_size,
        seq_len=seq_len,
    )
    place = find_place(machine, device, budget)
    return plan_job(training_job(model_or_config, batch, place.device, request), place, request)


def training_job(model: Model, batch: Any, device: str, request: Request) -> Job:
    """Return the job of training a model, given as for :func:`plan_training`, on a device."""
    seq_len = request.fixed.get("seq_len")
    if is_config(model):
        return config_job(model, device, seq_len=seq_len)
    if seq_len is not None:
        raise ArgumentError("seq_len= is for a transformer's config", given=seq_len)
    return module_job(model, batch, device)


def read_request(
    *,
    batch: Any = None,
    effective_batch: int | None = None,
    lora: Mapping[str, Any] | int | None = None,
    method: str = "auto",
    prefer: str = "speed",
    fixed: Mapping[str, Any] | None = None,
    optimizer: str | None = None,
    stage: str = "development",
    samples: int | None = None,
    world_size: int = 1,
    seq_len: int | None = None,
) -> Request:
    """Check what is asked and put what is decided in one place.

    Raises:
        ArgumentError: a value that cannot be used, or two that contradict each other.
        ArgumentTypeError: a value of the wrong type.
    """
    one_of("method", method, ("auto", "lora", "full"))
    one_of("prefer", prefer, PREFERENCES)
    one_of("stage", stage, STAGES)
    settled = decided(fixed, _FIXED, batch_size=batch, seq_len=seq_len, lora=lora)
    if optimizer is not None and settled.get("optimizer", optimizer) != optimizer:
        raise ArgumentError(
            f"optimizer is {shown(optimizer)} and fixed as {shown(settled['optimizer'])}",
            given=optimizer,
        )
    stepped = settled.get("optimizer", "adamw" if optimizer is None else optimizer)
    if not isinstance(stepped, str):
        raise wrong_type("optimizer", "a name such as 'adamw'", stepped)
    optimizer_for(stepped, "cpu")
    if not isinstance(settled.get("checkpointing", False), bool):
        raise wrong_type("checkpointing", "True or False", settled["checkpointing"])
    check_count("world_size", world_size, least=1)
    if samples is not None:
        check_count("samples", samples, least=1)
    rows = settled.pop("batch_size", None)
    if rows is not None:
        check_count("batch", rows, least=1)
    adapters = _adapters(settled.pop("lora", None))
    if adapters is not None and method == "full":
        raise ArgumentError("method='full' trains every weight: leave lora= away", given=lora)
    return Request(
        effective=_effective(effective_batch, rows, world_size),
        batch=rows,
        lora=adapters,
        method=method,  # type: ignore[arg-type]  # checked above
        prefer=prefer,  # type: ignore[arg-type]  # checked above
        fixed=settled,
        optimizer=stepped,
        stage=stage,  # type: ignore[arg-type]  # checked above
        samples=samples,
        world_size=world_size,
    )


def _adapters(lora: Any) -> Mapping[str, Any] | None:
    """Return the adapters by name; the estimator checks the numbers against the model.

    Raises:
        ArgumentError: a name that is none of theirs.
        ArgumentTypeError: a value of the wrong type.
    """
    if lora is None or isinstance(lora, int):
        return None if lora is None else {"r": lora}
    if not isinstance(lora, Mapping):
        raise wrong_type("lora", "a rank or a mapping such as {'r': 8}", lora)
    for name, value in lora.items():
        one_of("a setting of lora", name, (*_NUMBERS, *_TARGETS))
        if name in _NUMBERS and not isinstance(value, int | float | None):
            raise wrong_type(f"lora's {name}", "a number", value)
        if name in _TARGETS and not _are_names(value):
            raise wrong_type(f"lora's {name}", "names of modules", value)
    return lora


_NUMBERS = ("r", "rank", "lora_alpha", "alpha", "lora_dropout", "dropout")
_TARGETS = ("target_modules", "targets")


def _are_names(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return True
    return isinstance(value, Collection) and all(isinstance(name, str) for name in value)


def _effective(asked: int | None, rows: int | None, world_size: int) -> int:
    """Return the rows of one optimizer step in each process."""
    if asked is None:
        usual = int(defaults("batch")["effective"])
        each = -(-usual // world_size)
        return each if rows is None else rows * -(-each // rows)
    check_count("effective_batch", asked, least=1)
    if asked % world_size:
        raise ArgumentError(
            f"an effective batch of {asked} does not divide among {world_size} processes",
            given=asked,
        )
    return asked // world_size


def plan_job(job: Job, place: Place, request: Request, *, advise: bool = True) -> TrainingPlan:
    """Return the plan of a job on a machine.

    Args:
        job: the model on the machine's device.
        place: the machine.
        request: what was asked.
        advise: whether to look for what else would fit, where this does not.

    Raises:
        ArgumentError: nothing is left to choose from.
        EstimateError: no setting can be estimated.
    """
    check_processes(request.world_size, place.device)
    optimizer = optimizer_for(request.optimizer, place.device)
    search = Search(
        job.estimates,
        place.usable_bytes,
        batch_sizes(request.effective, request.batch),
        request.effective,
    )
    chosen, offered = None, []
    for method in _methods(job, request):
        offered = _ways(job, place, request, method, optimizer.name)
        chosen = search.first_that_fits(offered, job.lengths)
        if chosen is not None:
            break
    taken = chosen or search.best(offered, job.lengths)
    beside = search.beside(offered, taken)
    common = common_fields(job, place, search, taken, beside, advise=advise)
    why = reasons(
        job, place, search, taken, beside, optimizer, told=_told(request), fixed=request.fixed
    )
    return _plan(job, place, request, taken, {**common, "reasons": why})


def _told(request: Request) -> bool:
    """Return whether the user said what to train."""
    return request.method != "auto" or request.lora is not None


def _methods(job: Job, request: Request) -> tuple[Literal["lora", "full"], ...]:
    """Return what to train, in the order in which it is tried."""
    if request.lora is not None or request.method == "lora":
        if not job.adapts:
            raise ArgumentError(
                f"adapters are planned for a transformer's config, not for {job.name}",
                given=request.lora or request.method,
            )
        return ("lora",)
    if request.method == "full" or not job.adapts:
        return ("full",)
    large = job.parameters is None or job.parameters >= defaults("lora")["parameters"]
    return ("lora",) if large else ("full", "lora")


def _ways(job: Job, place: Place, request: Request, method: Method, optimizer: str) -> list[Way]:
    fixed = {key: value for key, value in request.fixed.items() if key != "seq_len"}
    if "optimizer" in fixed:
        fixed["optimizer"] = optimizer
    return ways(
        _first(request, method, optimizer),
        half=place.half,
        mixed=place.mixed,
        half_rate=place.half_rate,
        quantized=quantizations(place.device),
        prefer=request.prefer,
        fixed=fixed,
        checkpoints=job.checkpoints,
    )


def _first(request: Request, method: Method, optimizer: str) -> Setting:
    """Return the setting in float32, with nothing given up."""
    first = Setting(optimizer=optimizer, world_size=request.world_size)
    if method == "full":
        return first
    return replace(
        first,
        rank=_adapter(request, "r", "rank", usual="rank"),
        targets=_targets(request),
        dropout=_adapter(request, "lora_dropout", "dropout", usual="dropout"),
    )


def _targets(request: Request) -> tuple[str, ...]:
    """Return the modules that shall have adapters; none for the usual ones."""
    given = request.lora or {}
    named = next((given[name] for name in _TARGETS if given.get(name)), ())
    return (named,) if isinstance(named, str) else tuple(named)


def _adapter(request: Request, *names: str, usual: str) -> Any:
    """Return a number of the adapters, under peft's name or mpskit's."""
    given = request.lora or {}
    found = next((given[name] for name in names if given.get(name) is not None), None)
    return defaults("lora")[usual] if found is None else found


def _plan(
    job: Job, place: Place, request: Request, taken: Found, fields: Mapping[str, Any]
) -> TrainingPlan:
    """Write the plan down."""
    setting, verdict = taken.setting, taken.verdict
    loader, workers = loader_of(place, setting.rows)
    cap = int(min(verdict.needed_bytes * _CAP, place.usable_bytes))
    lora = None if setting.rank is None else _lora(job, request, setting.rank, setting.dropout)
    epochs, step = stage_epochs(request.stage), step_time(job, taken, place)
    epoch = epoch_time(step, setting, request.samples and -(-request.samples // request.world_size))
    run = None if epoch is None else epoch.times(epochs)
    fleet = _ALONE if request.world_size > 1 and step is not None else ""
    shares = _SHARES if setting.sharding == "fsdp" else ""
    timed = request.samples is not None
    cards = cloud_cards(job, taken, timed=timed) if place.device != "cuda" else ()
    quick = defaults("quick_run")["samples"]
    return TrainingPlan(
        **fields,
        method="full" if lora is None else "lora",
        accumulate=setting.accumulate,
        checkpointing=setting.checkpointing,
        lora=lora,
        optimizer=setting.optimizer,
        learning_rate=defaults("full" if lora is None else "lora")["learning_rate"],
        epochs=epochs,
        grad_scaler=PRECISIONS[setting.precision][1] == "float16",
        loader=loader,
        environment=place.environment(cap),
        cap_bytes=cap,
        samples=request.samples,
        world_size=request.world_size,
        sharding=setting.sharding or "none",
        step=step,
        epoch=epoch,
        run=run,
        cloud=cards,
        local=stay_local(verdict.answer, step, run, cards),
        quick_run=quick if request.samples is None else min(quick, request.samples),
        notes=(*place.notes, *taken.estimate.notes, *filter(None, [workers, fleet, shares])),
    )


# What stands on top of a transformer's layers -> peft's TaskType (0.17); a masked language model
# has none.
_TASKS = {
    "causal": "CAUSAL_LM",
    "generation": "SEQ_2_SEQ_LM",
    "classes": "SEQ_CLS",
    "none": "FEATURE_EXTRACTION",
}


def _lora(job: Job, request: Request, rank: int, dropout: float) -> LoraPlan:
    table, given = defaults("lora"), request.lora or {}
    return LoraPlan(
        rank=rank,
        alpha=int(given.get("lora_alpha", given.get("alpha")) or rank * table["alpha_per_rank"]),
        dropout=dropout,
        targets=_targets(request) or job.targets,
        task=_TASKS.get(job.shape.head) if job.shape else None,
    )
