"""Measuring how many workers a ``DataLoader`` should have: :func:`tune_dataloader`."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
import warnings
from collections.abc import Iterator, KeysView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import check_count, wrong_type
from mpskit._base.values import Value
from mpskit.backends.memory import as_device
from mpskit.errors import ArgumentError
from mpskit.training.dataset_facts import is_waiting, kept_random_state, private_copy

if TYPE_CHECKING:
    import torch

    from mpskit.training.loader import LoaderFacts

__all__ = ["LoaderMeasurement", "LoaderTuning", "tune_dataloader"]

# More workers must win by this factor: measurements on a busy machine are no more exact.
_GAIN = 1.05
# A measurement gets this share of the time, so that each count is measured more than once.
_SHARE = 0.1
# I/O-bound workers may outnumber the CPUs by this factor, up to this many.
_OVERSUBSCRIPTION, _MOST = 4, 16
# The least time a loader has to return a batch before it counts as hanging.
_PATIENCE_S = 30.0


class LoaderMeasurement(Value):
    """The measurement of one number of workers.

    Attributes:
        num_workers: the number.
        start_seconds: time until the first batch.
        batches_per_second: the rate after it; None if there was no second batch.
        epoch_seconds: time of an epoch, start-up included: measured if it was short enough, else
            computed from the two figures above; None if the length of an epoch is unknown.
        waiting: loading used hardly any CPU time (known for 0 workers only).
        error: why it failed; None if it did not.
    """

    num_workers: int
    start_seconds: float | None = None
    batches_per_second: float | None = None
    epoch_seconds: float | None = None
    waiting: bool | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.error:
            return f"{self.num_workers} workers: {self.error}"
        rate = (
            f"{self.batches_per_second:.1f} batches/s" if self.batches_per_second else "one batch"
        )
        epoch = f", epoch {self.epoch_seconds:.2f} s" if self.epoch_seconds else ""
        return f"{self.num_workers} workers: {rate}, first after {self.start_seconds:.2f} s{epoch}"


class LoaderTuning(Value):
    """The best number of workers found: ``DataLoader(dataset, **tuning)``.

    Attributes:
        kwargs: for ``DataLoader(dataset, **kwargs)``.
        reason: why they were chosen, in one sentence.
        measurements: every measurement, by number of workers.
        seconds: how long measuring took.
    """

    kwargs: dict[str, Any]
    reason: str
    measurements: tuple[LoaderMeasurement, ...]
    seconds: float

    def keys(self) -> KeysView[str]:
        """Return the names of the arguments, so that ``**tuning`` passes them on."""
        return self.kwargs.keys()

    def __getitem__(self, name: str) -> Any:
        return self.kwargs[name]

    def __str__(self) -> str:
        return "\n  ".join([self.reason, *map(str, self.measurements)])


def tune_dataloader(
    dataset: Any,
    device: str | torch.device,
    *,
    batch_size: int | None = 1,
    seconds: float = 10.0,
    epochs: int = 1,
    max_workers: int | None = None,
    **options: Any,
) -> LoaderTuning:
    """Measure a few numbers of ``DataLoader`` workers and return the best.

    It counts up from 0 (0, 1, 2, 4 ...) while more workers help, then measures the same counts
    twice more if time allows. The best has the shortest run of ``epochs`` epochs, starting the
    workers included; a larger number must win by 5%. Where loading waits for a disk or a network,
    up to four times as many workers as CPUs are tried; if such a number wins, creating the
    ``DataLoader`` warns (``reason`` says so); ``max_workers`` avoids that.

    The dataset is read, in this process through a shallow copy; the random states of Python, NumPy
    and torch are restored. A worker count that fails is recorded with its error.

    Args:
        dataset: as ``DataLoader`` takes it.
        device: where the batches will be used.
        batch_size: items per batch, 1 as in ``DataLoader``; None with a ``batch_sampler`` or a
            dataset of batches.
        seconds: how long measuring may take. Loading a batch is not interrupted, so it may take
            longer by a few batches and the start of the workers.
        epochs: how many epochs share the cost of starting the workers.
        max_workers: the largest number to try; None for the rule above.
        options: more arguments for ``DataLoader``: ``collate_fn``, ``shuffle``, ``sampler``...
            They are used for measuring and not returned.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: ``seconds`` is not positive and finite, a count is too small, torch knows
            no such device, or the dataset has no items.
        Exception: whatever the dataset itself raises while it is read in this process.
    """
    from mpskit.training.loader import build, loader_facts

    _check(batch_size, seconds, epochs, max_workers)
    facts = loader_facts(as_device(device).type, batch_size, dataset, look=False)
    begin = time.perf_counter()
    bench = _Bench(facts, dataset, options, epochs, end=begin + seconds)
    with kept_random_state(options.get("generator")):
        bench.climb(seconds * _SHARE, max_workers)
        bench.repeat(seconds * _SHARE)
    best, reason = bench.verdict()
    kwargs = build(facts, best, reason).kwargs
    if batch_size is None and "batch_sampler" not in options:
        kwargs["batch_size"] = None
    return LoaderTuning(
        kwargs=kwargs,
        reason=reason,
        measurements=tuple(bench.found[count] for count in sorted(bench.found)),
        seconds=time.perf_counter() - begin,
    )


def _check(batch_size: int | None, seconds: float, epochs: int, max_workers: int | None) -> None:
    if batch_size is not None:
        check_count("batch_size", batch_size, least=1)
    if max_workers is not None:
        check_count("max_workers", max_workers, least=0)
    check_count("epochs", epochs, least=1)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise wrong_type("seconds", "a number", seconds)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ArgumentError(f"seconds must be positive and finite, got {seconds}", given=seconds)


@dataclass(slots=True)
class _Bench:
    """Measures one dataset; ``found`` has the best measurement of each worker count."""

    facts: LoaderFacts
    dataset: Any
    options: dict[str, Any]
    epochs: int
    end: float
    batches: int | None = None
    found: dict[int, LoaderMeasurement] = field(default_factory=dict)

    def climb(self, share: float, max_workers: int | None) -> None:
        """Try 0, 1, 2, 4 ... until two in a row are no better, or time or numbers run out."""
        worse = 0
        for count in self._counts(max_workers):
            if self.found and self._left() <= self._start():
                return
            before = min(map(self._cost, self.found), default=math.inf)
            self._measure(count, share)
            worse = 0 if self._cost(count) * _GAIN < before else worse + 1
            if worse > 1:
                return

    def repeat(self, share: float) -> None:
        """Measure twice more, the best first, while time remains.

        The best measurement of each count is kept: other load on the machine can only make one
        worse.
        """
        good = sorted(
            (count for count in self.found if self._cost(count) < math.inf), key=self._cost
        )
        for count in good * 2:
            if self._left() < share + self._start():
                return
            self._measure(count, share)

    def verdict(self) -> tuple[int, str]:
        """Return the smallest count that is as good as the best, and why."""
        least = min(map(self._cost, self.found))
        best = min(count for count in self.found if self._cost(count) <= least * _GAIN)
        if best == 0:
            return 0, "0 workers: more are no faster"
        reason = f"{best} workers: {self._cost(0) / self._cost(best):.1f} times as fast as 0"
        cpus = self.facts.counted_cpus
        if best > cpus:
            reason += f"; DataLoader will warn that this is more than the {cpus} CPUs"
        return best, reason

    def _counts(self, max_workers: int | None) -> Iterator[int]:
        yield 0
        limit = 0 if self.facts.dataset.on_accelerator else self._limit(max_workers)
        count = 1
        while count < limit:
            yield count
            count *= 2
        if limit:
            yield limit

    def _limit(self, max_workers: int | None) -> int:
        """Return the largest count; valid after 0 workers, which tell whether loading waits."""
        limit = self.facts.counted_cpus if max_workers is None else max_workers
        if max_workers is None and self.found[0].waiting:
            limit = max(limit, min(limit * _OVERSUBSCRIPTION, _MOST))
        return limit if self.batches is None else min(limit, self.batches)

    def _start(self) -> float:
        """Return the longest start so far, which the next one is expected to take."""
        return max((found.start_seconds or 0.0 for found in self.found.values()), default=0.0)

    def _left(self) -> float:
        return self.end - time.perf_counter()

    def _cost(self, count: int) -> float:
        """Return the seconds of all epochs, or of a batch where an epoch has no known length."""
        found = self.found[count]
        first, rate = _seconds(found), found.batches_per_second
        if found.epoch_seconds is None or rate is None or self.batches is None:
            return first
        return first + (self.epochs - 1) * self.batches / rate

    def _measure(self, count: int, share: float) -> None:
        try:
            measured = self._run(count, min(share, max(self._left(), 0)))
        except Exception as error:
            if count == 0:
                raise
            measured = LoaderMeasurement(num_workers=count, error=_first_line(error))
            # The frames hold the loader's iterator. Freed now, it stops its workers; freed later by
            # the garbage collector, it has lost their queue already and waits 5 s for each.
            traceback.clear_frames(error.__traceback__)
        before = self.found.get(count)
        if before is None or _seconds(measured) < _seconds(before):
            self.found[count] = measured

    def _run(self, count: int, limit: float) -> LoaderMeasurement:
        loader = self._loader(count)
        self.batches = _length(loader)
        wall, cpu = time.perf_counter(), time.thread_time()
        arrivals, complete = _arrivals(loader, limit, least=count + 2)
        if not arrivals:
            raise ArgumentError("the dataset yields no batch", given=self.dataset)
        waiting = is_waiting(time.thread_time() - cpu, time.perf_counter() - wall)
        start, rate = arrivals[0] - wall, _rate(arrivals, count)
        epoch = arrivals[-1] - wall if complete else None
        if epoch is None and self.batches is not None and rate:
            epoch = start + (self.batches - 1) / rate
        return LoaderMeasurement(
            num_workers=count,
            start_seconds=start,
            batches_per_second=rate,
            epoch_seconds=epoch,
            waiting=None if count else waiting,
        )

    def _loader(self, count: int) -> Any:
        from torch.utils.data import DataLoader

        from mpskit.training.loader import build

        kwargs = build(self.facts, count, "").kwargs | {"batch_size": self.facts.batch_size}
        # Persistent workers would outlive the measurement; a timeout makes a hanging one fail.
        kwargs.pop("persistent_workers", None)
        if count:
            kwargs["timeout"] = max(_PATIENCE_S, self._left())
        if "batch_sampler" in self.options:
            del kwargs["batch_size"]
        dataset = self.dataset if count else private_copy(self.dataset)
        with _allowing_many_workers():
            return DataLoader(dataset, **kwargs, **self.options)


@contextlib.contextmanager
def _allowing_many_workers() -> Iterator[None]:
    """Silence the warning about more workers than CPUs, which creation and start both give."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _arrivals(loader: Any, limit: float, *, least: int) -> tuple[list[float], bool]:
    """Take batches until ``limit`` seconds after the first, and enough of them for a rate.

    Returns:
        The time of each, and whether the loader is exhausted.
    """
    arrivals: list[float] = []
    with _allowing_many_workers():
        batches = iter(loader)
    for _ in batches:
        arrivals.append(time.perf_counter())
        if len(arrivals) >= least and arrivals[-1] - arrivals[0] >= limit:
            return arrivals, False
    return arrivals, True


def _rate(arrivals: list[float], workers: int) -> float | None:
    """Return batches per second, without the workers' first round, which comes at once."""
    first = max(0, min(workers - 1, len(arrivals) - 2))
    count, span = len(arrivals) - 1 - first, arrivals[-1] - arrivals[first]
    return count / span if count > 0 and span > 0 else None


def _seconds(found: LoaderMeasurement) -> float:
    """Return the seconds that rank a measurement: of an epoch, else of a batch."""
    rate = found.batches_per_second
    return found.epoch_seconds or (1 / rate if rate else math.inf)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"
