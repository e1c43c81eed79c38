"""Facts of a dataset (kind, length, cost of an item) for the rules in ``loader``."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import pickle
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mpskit.system.machine import affinity

__all__ = [
    "DatasetFacts",
    "ItemCost",
    "dataset_facts",
    "fits_a_worker",
    "is_waiting",
    "kept_random_state",
    "private_copy",
    "torch_cpu_count",
]

# Reading sample items stops after this many, or after the item that exceeds ``_PEEK_S``.
_PEEK_ITEMS = 3
# Waiting uses almost no CPU time. On a busy machine, code that computes gets only part of a CPU, so
# a threshold of a half would mistake it for waiting.
_WORKING_SHARE = 0.1
_PEEK_S = 0.05
# Above this pickled size, copying the dataset into each worker takes longer than it saves.
_PICKLE_LIMIT = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class ItemCost:
    """What loading one item costs.

    Attributes:
        seconds: the time it takes.
        waiting: it uses hardly any CPU time, because it waits for a disk or a network.
    """

    seconds: float
    waiting: bool


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What is known about a dataset; the defaults stand for none given.

    Attributes:
        kind: ``unknown``, ``map`` (has items), ``iterable``, or ``in-memory`` (tensors).
        on_accelerator: its tensors are not on the CPU.
        length: number of items; None if it has no ``len()``.
        cost: the cost of an item; None if none was read.
    """

    kind: Literal["unknown", "map", "iterable", "in-memory"] = "unknown"
    on_accelerator: bool = False
    length: int | None = None
    cost: ItemCost | None = None

    def batches(self, batch_size: int | None) -> int | None:
        """Return how many batches an epoch has; None if the length is unknown."""
        return None if self.length is None else math.ceil(self.length / (batch_size or 1))


def dataset_facts(dataset: Any, *, look: bool) -> DatasetFacts:
    """Return the facts of a dataset.

    Args:
        dataset: as ``DataLoader`` takes it; None for none.
        look: time up to three of its items, unless it is iterable or in memory.
    """
    from torch.utils.data import IterableDataset

    if dataset is None:
        return DatasetFacts()
    length = _length(dataset)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return DatasetFacts("iterable", length=length)
    tensors = _tensors(dataset)
    if tensors:
        return DatasetFacts("in-memory", on_accelerator=_off_cpu(tensors), length=length)
    cost, off_cpu = _peek(dataset, length) if look else (None, False)
    return DatasetFacts("map", on_accelerator=off_cpu, length=length, cost=cost)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _tensors(dataset: Any) -> tuple[Any, ...]:
    """Return the tensors of an in-memory dataset; empty for any other."""
    import torch
    from torch.utils.data import Subset, TensorDataset

    if isinstance(dataset, Subset):
        return _tensors(dataset.dataset)
    if isinstance(dataset, TensorDataset):
        return tuple(dataset.tensors)
    if isinstance(dataset, torch.Tensor):
        return (dataset,)
    if isinstance(dataset, list | tuple) and dataset:
        first = dataset[0] if isinstance(dataset[0], list | tuple) else (dataset[0],)
        return tuple(item for item in first if isinstance(item, torch.Tensor))
    return ()


def _peek(dataset: Any, length: int | None) -> tuple[ItemCost | None, bool]:
    """Time a few items, on a shallow copy.

    Returns:
        The cost of an item (None if there is none or it fails), and whether it is on an
        accelerator.
    """
    costs: list[tuple[float, float]] = []
    dataset, item = private_copy(dataset), None
    end = time.perf_counter() + _PEEK_S
    try:
        with kept_random_state():
            for index in range(_PEEK_ITEMS if length is None else min(_PEEK_ITEMS, length)):
                wall, cpu = time.perf_counter(), time.thread_time()
                item = dataset[index]
                costs.append((time.perf_counter() - wall, time.thread_time() - cpu))
                if time.perf_counter() > end:
                    break
    except Exception:  # noqa: BLE001 - the loader will raise the dataset's own error
        return None, False
    # The first item often opens files, so the cheapest represents the others.
    seconds, cpu = min(costs, default=(0.0, 0.0))
    cost = ItemCost(seconds, waiting=is_waiting(cpu, seconds)) if costs else None
    return cost, _off_cpu(item)


def is_waiting(cpu: float, wall: float) -> bool:
    """Return whether code that took these seconds waited rather than computed."""
    return cpu < wall * _WORKING_SHARE


def _off_cpu(item: Any) -> bool:
    """Return whether an item has a tensor that is not on the CPU."""
    if isinstance(item, Mapping):
        return any(map(_off_cpu, item.values()))
    if isinstance(item, list | tuple):
        return any(map(_off_cpu, item))
    device = getattr(item, "device", None)
    return getattr(device, "type", "cpu") != "cpu"


def private_copy(dataset: Any) -> Any:
    """Return a shallow copy, so that a file opened on first use is not shared with the workers.

    A handle that the parent opened and a forked worker inherits has one position for both: HDF5
    and zip readers then return wrong data without an error.
    """
    try:
        return copy.copy(dataset)
    except Exception:  # noqa: BLE001 - what cannot be copied is used as it is
        return dataset


@contextlib.contextmanager
def kept_random_state(generator: Any = None) -> Iterator[None]:
    """Restore the random states of Python, torch's CPU and NumPy (if imported) afterwards."""
    import torch

    numpy = sys.modules.get("numpy")
    python, cpu = random.getstate(), torch.get_rng_state()
    array = numpy.random.get_state() if numpy else None
    own = generator.get_state() if generator is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy:
            numpy.random.set_state(array)
        if generator is not None:
            generator.set_state(own)


class _Sink:
    """Counts the bytes written to it, and raises beyond the limit."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        if self.count > _PICKLE_LIMIT:
            raise OverflowError
        return len(data)


def fits_a_worker(dataset: Any) -> bool:
    """Return whether the dataset pickles to at most 64 MiB, so that a spawned worker can have it.

    Classes defined in ``__main__`` reach the workers of a script but not those of a notebook; this
    is not checked.
    """
    try:
        pickle.Pickler(_Sink()).dump(dataset)
    except Exception:  # noqa: BLE001 - any failure to pickle is the answer no
        return False
    return True


def torch_cpu_count() -> int:
    """Return the CPUs as ``DataLoader`` counts them; it warns of more workers than that."""
    return affinity() or os.cpu_count() or 1
