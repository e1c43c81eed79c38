"""Rules for ``torch.utils.data.DataLoader`` arguments: :func:`dataloader_kwargs`.

The right arguments depend on the machine, and wrong ones warn or are slow. Pinned memory does not
work on MPS (torch turns it off with a warning, up to 2.15 at least). On macOS every worker is a new
Python that imports torch again, which takes seconds (hloc#502: 5 s; hyrax#224: an epoch of two
minutes became 15 s without workers). A container has fewer CPUs than it appears to.

:func:`dataloader_kwargs` decides by rule and :func:`tune_dataloader` by measuring.
"""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from mpskit._base.arguments import check_count
from mpskit.backends.kinds import MemoryClass, kind_of
from mpskit.backends.memory import as_device
from mpskit.errors import ArgumentTypeError
from mpskit.host.kinds import HostKind
from mpskit.host.named import check_cpus, given_host
from mpskit.training.dataset_facts import (
    DatasetFacts,
    dataset_facts,
    fits_a_worker,
    torch_cpu_count,
)
from mpskit.training.loader_tuning import LoaderMeasurement, LoaderTuning, tune_dataloader

if TYPE_CHECKING:
    import torch

    from mpskit.host import Host
    from mpskit.host.named import MachineLike

__all__ = [
    "ExplainedKwargs",
    "LoaderFacts",
    "LoaderMeasurement",
    "LoaderTuning",
    "build",
    "dataloader_kwargs",
    "loader_facts",
    "tune_dataloader",
    "workers_for",
]

# Beyond this only a measurement can tell whether more workers help: tune_dataloader.
_MOST_WORKERS = 4
# A worker takes 0.7 ms to hand over even a tiny batch (2-core x86-64 Linux machine).
_WORTH_S = 0.002
# Seconds to start a worker: a fork, or a new Python that imports torch (hloc#502).
_START_S = {"fork": 0.05, "forkserver": 5.0, "spawn": 5.0}
# Unless asked for, workers are used only if an epoch takes this many times their start-up.
_STARTS_PER_EPOCH = 10

_NO_DATASET = DatasetFacts()


class ExplainedKwargs(NamedTuple):
    """What ``dataloader_kwargs(..., explain=True)`` returns.

    Attributes:
        kwargs: for ``DataLoader``.
        reasons: one sentence for each argument, under the same keys.
    """

    kwargs: dict[str, Any]
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """The inputs of the rule for the number of workers.

    Attributes:
        device: type of the device that the batches go to.
        usable_cpus: CPUs that affinity and the container allow this process.
        counted_cpus: CPUs as ``DataLoader`` counts them.
        start_method: how Python starts a worker here: fork, forkserver or spawn.
        batch_size: items per batch.
        dataset: what is known about the data.
    """

    device: str
    usable_cpus: int
    counted_cpus: int
    start_method: str = "fork"
    batch_size: int | None = None
    dataset: DatasetFacts = _NO_DATASET


@overload
def dataloader_kwargs(
    device: str | torch.device,
    *,
    machine: MachineLike | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    dataset: Any = None,
    explain: Literal[False] = False,
) -> dict[str, Any]: ...
@overload
def dataloader_kwargs(
    device: str | torch.device,
    *,
    machine: MachineLike | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    dataset: Any = None,
    explain: Literal[True],
) -> ExplainedKwargs: ...
def dataloader_kwargs(
    device: str | torch.device,
    *,
    machine: MachineLike | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    dataset: Any = None,
    explain: bool = False,
) -> dict[str, Any] | ExplainedKwargs:
    """Return arguments for ``DataLoader(dataset, **kwargs)`` that suit the device and the machine.

    They are valid for torch 2.2 to 2.15 and cause no warnings there. The keys are ``num_workers``
    and ``pin_memory``; ``batch_size`` if it was given; with workers also ``persistent_workers``,
    ``prefetch_factor`` and, for MPS, ``multiprocessing_context``, which are only valid with
    workers.

    Args:
        device: where the batches will be used.
        machine: another machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`; None is this one.
        batch_size: items per batch; returned with the rest.
        num_workers: the number wanted; None lets the rule decide. Fewer are returned if there are
            fewer CPUs or batches, or if the data is on an accelerator.
        dataset: the data, for a better choice. For a device other than MPS, and unless workers were
            asked for, up to three items of a map-style dataset are read and timed; the random
            states are restored.
        explain: return the reasons too.

    Returns:
        The arguments, or with ``explain=True`` an :class:`ExplainedKwargs` ``(kwargs, reasons)``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        UnknownMachineError: no machine has that name.
        ArgumentError: torch knows no such device; ``batch_size`` is below 1 or ``num_workers``
            below 0; ``machine`` names a CUDA card, which says nothing about the CPUs beside it.

    >>> dataloader_kwargs("mps", batch_size=8)
    {'batch_size': 8, 'num_workers': 0, 'pin_memory': False}
    """
    kind = as_device(device).type
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value is not None:
            check_count(name, value, least=least)
    look = num_workers is None and kind_of(kind).fork_safe
    facts = loader_facts(kind, batch_size, dataset, look=look, host=given_host(machine))
    workers, why = workers_for(facts, num_workers)
    unasked = workers and num_workers is None and facts.start_method != "fork"
    if unasked and not fits_a_worker(dataset):
        workers, why = 0, "the dataset does not pickle, or to more than 64 MiB"
    explained = build(facts, workers, why)
    return explained if explain else explained.kwargs


def build(facts: LoaderFacts, workers: int, why: str) -> ExplainedKwargs:
    """Return the arguments for this many workers, with those that are valid only with workers."""
    entries: dict[str, tuple[Any, str]] = {}
    if facts.batch_size is not None:
        entries["batch_size"] = (facts.batch_size, "as given")
    entries["num_workers"] = (workers, why)
    entries["pin_memory"] = _pinning(facts.device, facts.dataset)
    if workers:
        entries |= _WORKER_OPTIONS
    if workers and not kind_of(facts.device).fork_safe:
        entries["multiprocessing_context"] = _SPAWN
    kwargs = {name: value for name, (value, _) in entries.items()}
    return ExplainedKwargs(kwargs, {name: reason for name, (_, reason) in entries.items()})


_WORKER_OPTIONS: dict[str, tuple[Any, str]] = {
    "persistent_workers": (True, "workers are started once, not once per epoch"),
    "prefetch_factor": (2, "two batches ahead for each worker, as torch does by default"),
}
_SPAWN = ("spawn", "a forked child of a process that used Metal may crash")


def loader_facts(
    device: str, batch_size: int | None, dataset: Any, *, look: bool, host: Host | None = None
) -> LoaderFacts:
    """Return the facts for the rules; ``look`` times up to three items of the dataset.

    ``host`` is another machine; its items are taken to load as fast as they do here.
    """
    from mpskit.host import detect_host

    if host is not None:
        check_cpus(host)
    if dataset is not None and not _is_dataset(dataset):
        raise ArgumentTypeError(
            f"a dataset has __getitem__ or __iter__; {type(dataset).__name__} has neither",
            given=dataset,
        )
    return LoaderFacts(
        device=device,
        usable_cpus=(host or detect_host()).usable_cpus,
        counted_cpus=torch_cpu_count() if host is None else host.logical_cpus or host.usable_cpus,
        start_method=_start_method(host, detect_host()),
        batch_size=batch_size,
        dataset=dataset_facts(dataset, look=look),
    )


def _start_method(host: Host | None, here: Host) -> str:
    """Return how Python starts a worker: this process's own way, or the other system's usual one.

    Without ``allow_none`` the question itself would settle the default, and a later
    ``multiprocessing.set_start_method`` raise "context has already been set".

    Args:
        host: another machine, if one is meant.
        here: this machine.
    """
    if host is None or host.os_name == here.os_name:
        default = multiprocessing.get_all_start_methods()[0]
        return multiprocessing.get_start_method(allow_none=True) or default
    if host.kind is not HostKind.LINUX:
        return "spawn"
    return "forkserver" if sys.version_info >= (3, 14) else "fork"


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "__getitem__") or hasattr(value, "__iter__")


def _pinning(device: str, dataset: DatasetFacts) -> tuple[bool, str]:
    if dataset.on_accelerator:
        return False, "the data is on the accelerator already"
    kind = kind_of(device)
    if kind.pins:
        return True, "copies from pinned memory are asynchronous"
    if kind.memory is MemoryClass.UNIFIED:
        why = f"torch does not pin for {kind.title} (it warns), and the memory is shared anyway"
        return False, why
    return False, f"pinned memory brings nothing on {device}"


def workers_for(facts: LoaderFacts, asked: int | None = None) -> tuple[int, str]:
    """Return the number of workers and why, from facts alone.

    Args:
        facts: the device, the machine and the data.
        asked: the number that the user gave; None for none.
    """
    batches = facts.dataset.batches(facts.batch_size)
    limit = min(facts.counted_cpus, facts.counted_cpus if batches is None else batches)
    if facts.dataset.on_accelerator:
        return 0, "a worker cannot hand over tensors that are on an accelerator"
    if asked is not None:
        short = f"asked for {asked}, and there are {facts.counted_cpus} CPUs"
        short += "" if batches is None else f" and {batches} batches"
        return (asked, "as asked") if asked <= limit else (limit, short)
    if refusal := _refusal(facts):
        return 0, refusal
    return _unasked(facts, limit)


def _refusal(facts: LoaderFacts) -> str | None:
    """Return why the device or the kind of data rules workers out; None if neither does."""
    if not kind_of(facts.device).fork_safe:
        return "on macOS each worker is a new Python that imports torch, which takes seconds"
    if facts.dataset.kind == "iterable":
        return "each worker would yield the whole iterable dataset, unless it shards itself"
    if facts.dataset.kind == "in-memory":
        return "the data is in memory: handing it over would cost more than indexing it"
    if facts.device == "cpu" and not (facts.dataset.cost and facts.dataset.cost.waiting):
        return "training itself needs the CPUs (tune_dataloader measures whether workers help)"
    return None


def _unasked(facts: LoaderFacts, limit: int) -> tuple[int, str]:
    """Use workers only where they clearly pay, given what hand-over and start-up cost."""
    cost = facts.dataset.cost
    waiting = cost is not None and cost.waiting
    # I/O-bound workers need no core of their own; CPU-bound ones must leave one for the training
    # process.
    cpus = facts.counted_cpus if waiting else facts.usable_cpus - 1
    workers = max(0, min(_MOST_WORKERS, cpus, limit))
    if workers == 0:
        return 0, "there is no CPU to spare"
    if cost is None:
        return workers, f"{facts.usable_cpus} usable CPUs, one left for training, at most 4"
    if cost.seconds * (facts.batch_size or 1) < _WORTH_S:
        return 0, "a batch loads faster than a worker could hand it over"
    starting = workers * _START_S.get(facts.start_method, max(_START_S.values()))
    if cost.seconds * (facts.dataset.length or 0) < _STARTS_PER_EPOCH * starting:
        return 0, "an epoch is too short to repay starting the workers"
    busy = "mostly waits" if waiting else "keeps a CPU busy"
    return workers, f"an item takes {cost.seconds * 1e3:.1f} ms and {busy}"
