"""What a data set says about how it should be loaded: facts for the rules of ``dataloader``."""

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

# A look into a data set stops after so many items, or after the item that ends this time.
_PEEK_ITEMS = 3
# Waiting uses next to no processor time. On a busy machine work gets only part of a processor, so
# a share as large as a half would take work for waiting.
_WORKING_SHARE = 0.1
_PEEK_S = 0.05
# A data set that pickles to more than this is copied into each worker for longer than it saves.
_PICKLE_LIMIT = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class ItemCost:
    """What one item costs.

    Attributes:
        seconds: from asking to having it.
        waiting: hardly any processor was used in that time: it waits for a disk or a network.
    """

    seconds: float
    waiting: bool


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What is known of a data set; the defaults are those of one that nobody has given.

    Attributes:
        kind: ``unknown``, ``map`` (has items), ``iterable``, or ``in-memory`` (tensors).
        on_accelerator: its tensors are not on the CPU.
        length: items; None if it does not say.
        cost: of an item; None if it was not looked at.
    """

    kind: Literal["unknown", "map", "iterable", "in-memory"] = "unknown"
    on_accelerator: bool = False
    length: int | None = None
    cost: ItemCost | None = None

    def batches(self, batch_size: int | None) -> int | None:
        """Return how many batches an epoch has; None if nobody can know."""
        return None if self.length is None else math.ceil(self.length / (batch_size or 1))


def dataset_facts(dataset: Any, *, look: bool) -> DatasetFacts:
    """Return what a data set is.

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
        return DatasetFacts("in-memory", on_accelerator=_is_away(tensors), length=length)
    cost, away = _peek(dataset, length) if look else (None, False)
    return DatasetFacts("map", on_accelerator=away, length=length, cost=cost)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _tensors(dataset: Any) -> tuple[Any, ...]:
    """Return the tensors that a data set is a view of; empty if it is something else."""
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
        What an item costs, None if there is none or it fails; and whether it is on an accelerator.
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
    except Exception:  # noqa: BLE001 - the loader is the one to show a data set's own error
        return None, False
    # The first item often opens files: the cheapest is what the others will be like.
    seconds, cpu = min(costs, default=(0.0, 0.0))
    cost = ItemCost(seconds, waiting=is_waiting(cpu, seconds)) if costs else None
    return cost, _is_away(item)


def is_waiting(cpu: float, wall: float) -> bool:
    """Return whether something that took so many seconds waited rather than worked."""
    return cpu < wall * _WORKING_SHARE


def _is_away(item: Any) -> bool:
    """Return whether an item has a tensor that is not on the CPU."""
    if isinstance(item, Mapping):
        return any(map(_is_away, item.values()))
    if isinstance(item, list | tuple):
        return any(map(_is_away, item))
    device = getattr(item, "device", None)
    return getattr(device, "type", "cpu") != "cpu"


def private_copy(dataset: Any) -> Any:
    """Return a shallow copy, so that a file opened on first use is not shared with the workers.

    A handle that the parent opened and a forked worker inherits has one position for both: HDF5
    and zip readers then return wrong data without an error.
    """
    try:
        return copy.copy(dataset)
    except Exception:  # noqa: BLE001 - what cannot be copied is used itself
        return dataset


@contextlib.contextmanager
def kept_random_state(generator: Any = None) -> Iterator[None]:
    """Put the random streams of Python, torch's CPU and NumPy (if imported) back afterwards."""
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
    """Counts what is written to it, and gives up at the limit."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        if self.count > _PICKLE_LIMIT:
            raise OverflowError
        return len(data)


def fits_a_worker(dataset: Any) -> bool:
    """Return whether a worker that is not forked can be given the data set: it pickles, and small.

    What is defined in ``__main__`` pickles only for scripts, not for notebooks; that is not known
    here.
    """
    try:
        pickle.Pickler(_Sink()).dump(dataset)
    except Exception:  # noqa: BLE001 - any failure to pickle is the answer no
        return False
    return True


def torch_cpu_count() -> int:
    """Return the CPUs as ``DataLoader`` counts them: it warns when the workers are more."""
    return affinity() or os.cpu_count() or 1
