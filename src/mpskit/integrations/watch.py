"""What runs around a training of any trainer: awake, monitored, cache cleared, errors answered."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mpskit.errors import OutOfMemory
from mpskit.integrations.planned import Planned
from mpskit.memory.cache import empty_cache
from mpskit.memory.cache_scope import CacheKeeper
from mpskit.memory.frames import release_frames
from mpskit.memory.monitor import MemoryMonitor
from mpskit.memory.oom import is_oom
from mpskit.memory.oom_advice import explain_oom
from mpskit.training.keep_awake import keep_awake

if TYPE_CHECKING:
    from mpskit.memory.amounts import Amount

__all__ = ["Watch", "out_of_memory"]


class Watch:
    """Watch a training while it runs, or while the body of a ``with`` runs.

    Args:
        plan: what is trained, and on which device.
        interval: seconds between two samples of memory.
        every: look at the cache every so many optimizer steps.
        above: clear it if at least this much could be freed; a quarter of the memory by default.

    Attributes:
        plan: the plan.
        monitor: the samples; ``monitor.plot(path)`` draws them.
    """

    def __init__(
        self,
        plan: Planned,
        *,
        interval: float = 0.5,
        every: int | None = None,
        above: Amount | None = None,
    ) -> None:
        self.plan = plan
        self.monitor = MemoryMonitor(plan.device, interval=interval)
        self._keeper = CacheKeeper(plan.device, every, above)
        self._running = contextlib.ExitStack()
        self._within = False

    def __enter__(self) -> Self:
        self._begin()
        self._within = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._within = False
        self._running.__exit__(kind, error, traceback)
        if error is not None and is_oom(error) and not isinstance(error, OutOfMemory):
            answer = out_of_memory(self.plan, error)
            release_frames(error)
            empty_cache(self.plan.device)
            raise answer from error

    def begin(self) -> None:
        """Start, unless the body of a ``with`` is running."""
        if not self._within:
            self._begin()

    def end(self) -> None:
        """Stop, unless the body of a ``with`` is running; a second call does nothing."""
        if not self._within:
            self._running.close()

    def step(self) -> None:
        """Count an optimizer step, and clear the cache if that is due."""
        self._keeper.step()

    def plot(self, path: str | Path) -> Path:
        """Draw the samples; see :meth:`mpskit.MemoryMonitor.plot`."""
        return self.monitor.plot(path)

    def _begin(self) -> None:
        self._running.close()  # of a training that ended with an error
        with contextlib.ExitStack() as started:
            started.enter_context(keep_awake(f"training {self.plan.model}"))
            started.enter_context(self.monitor)
            self._running = started.pop_all()


def out_of_memory(plan: Planned, error: BaseException) -> OutOfMemory:
    """Return the error that says what happened and carries the next plan.

    Args:
        plan: what ran out of memory.
        error: the backend's error.
    """
    smaller = plan.smaller()
    if smaller is None:
        told = "One row with checkpointing did not fit: take a shorter sequence or a smaller model."
    else:
        again = ", gradient checkpointing" if smaller.checkpointing else ""
        told = (
            f"Next plan: a batch of {smaller.batch_size} x {smaller.accumulate} accumulated{again} "
            "(the error's next_plan)."
        )
    return OutOfMemory(f"{explain_oom(error).summary} {told}", given=plan, next_plan=smaller)
