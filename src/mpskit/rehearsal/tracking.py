"""Knows the module, the phase and the step at each moment, and ends the run after enough steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

from mpskit.estimate.trace.module_tracker import ModuleTracker
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.rehearsal.changes import Kinds

__all__ = ["RehearsalEnd", "ScriptTracker"]


class RehearsalEnd(SystemExit):
    """Enough steps have run. No ``except Exception`` of a trainer catches it.

    A process that it ends has exit code 0, as its launcher (torchrun) expects.
    """

    def __init__(self) -> None:
        super().__init__(0)


class ScriptTracker(ModuleTracker):
    """Tracks whatever models and optimizers a script makes.

    Args:
        log: whose ``where`` is kept true.
        steps: optimizer steps after which the run ends; None for no end.
        stepped: called after each.
        kinds: learns of the models and optimizers.

    Attributes:
        steps: how many optimizer steps have run.
        end: what was raised after the last of them.
    """

    def __init__(
        self, log: StorageLog, steps: int | None, stepped: Callable[[], None], kinds: Kinds
    ) -> None:
        super().__init__(None, log, "step")
        self._kinds = kinds
        self._paths_of: weakref.WeakKeyDictionary[torch.nn.Module, str] = (
            weakref.WeakKeyDictionary()
        )
        self._most, self._stepped = steps, stepped
        self._taken: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.steps = 0
        self.end: RehearsalEnd | None = None
        self.where.step, self.where.phase = 0, "setup"

    @property
    def own_thread(self) -> bool:
        """Whether the caller runs on the thread that is tracked."""
        return get_ident() == self._thread

    def _call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        tracked, kinds = super()._call(call), self._kinds

        def run(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.where.phase == "backward":
                kinds.recomputes = True
            elif not self.where.module:
                kinds.called(module, (*args, *kwargs.values()))
            return tracked(module, *args, **kwargs)

        return run

    def _name(self, module: torch.nn.Module, outer: str) -> str:
        found = self._paths_of.get(module)
        if found is None and not outer:  # called by the script itself: the root of a model
            self._learn(module)
            found = self._paths_of.get(module)
        if self.where.phase == "setup":
            self.where.phase = "step"
        return outer if found is None else found

    def _learn(self, root: torch.nn.Module) -> None:
        name = type(root).__name__
        for path, module in root.named_modules():
            self._paths_of[module] = path or name

    def _before_step(self, *rest: Any) -> None:
        super()._before_step(*rest)
        if self.own_thread:
            self._kinds.look()

    def _after_step(self, optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        super()._after_step(optimizer, *rest)
        if not self.own_thread:
            return
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor):
                    self._kinds.note(value, "optimizer")
        self._taken[optimizer] = self._taken.get(optimizer, 0) + 1
        taken = list(self._taken.values())
        if max(taken) > self.steps:
            self.steps = max(taken)
            self.begin(self.steps)
            self._stepped()
        if self._most is not None and self._is_enough(taken, self._most):
            self.end = RehearsalEnd()
            raise self.end

    def _is_enough(self, taken: list[int], most: int) -> bool:
        """Several optimizers have to come to the same number, unless one lags far behind."""
        return min(taken) >= most or max(taken) > 2 * most + 1
