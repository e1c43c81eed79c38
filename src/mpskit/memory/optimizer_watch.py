"""Detects the first optimizer step of a call, and leaves the call there.

At its first ``optimizer.step()`` a training step has finished its forward and backward pass, and no
weight has changed yet. Only the optimizer's states may still need memory.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

from mpskit._base.data import read_toml

__all__ = ["Left", "OptimizerWatch", "states_to_come"]


class Left(BaseException):
    """Leaves a call at its optimizer's step; not an ``Exception``, so no handler catches it."""


class OptimizerWatch:
    """Context of a call: asks ``goes_on`` at an optimizer's step, and raises `Left` if it says no.

    Only steps of the thread that entered it count, and only if torch was imported by then.

    Attributes:
        steps: how many steps were allowed.
        left: a step was refused; what the call does afterwards does not count.
    """

    _handle: Any = None

    def __init__(self, goes_on: Callable[[Any], bool], *, step: int = 1) -> None:
        """Watch for the step of that number; ``goes_on`` is given the optimizer."""
        self._goes_on = goes_on
        self._to_pass = step - 1
        self._thread = threading.get_ident()
        self.steps, self.left = 0, False

    def __enter__(self) -> Self:
        if "torch" in sys.modules:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            # A weak reference: if an interrupt ends __exit__, the hook still goes with the watch.
            self._handle = register_optimizer_step_pre_hook(_weakly(self))
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def __del__(self) -> None:
        self.__exit__()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Judge now, or after the closure that runs the passes, by returning new arguments."""
        if threading.get_ident() != self._thread:
            return None
        if self._to_pass < 0:
            self.steps += 1
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._judge(optimizer)
            return None

        def judged() -> Any:
            loss = closure()
            self._judge(optimizer)
            return loss

        if "closure" in kwargs:
            return args, kwargs | {"closure": judged}
        return (args[0], judged, *args[2:]), kwargs

    def _judge(self, optimizer: Any) -> None:
        if self._to_pass < 0:
            return
        if self.left or (self._to_pass == 0 and not self._goes_on(optimizer)):
            self.left = True
            raise Left
        self.steps += 1
        self._to_pass -= 1


def _weakly(watch: OptimizerWatch) -> Callable[[Any, Any, Any], Any]:
    known = weakref.ref(watch)

    def before_step(optimizer: Any, args: Any, kwargs: Any) -> Any:
        found = known()
        return None if found is None else found._before_step(optimizer, args, kwargs)

    return before_step


def states_to_come(optimizer: Any) -> int:
    """Return the bytes of states that a ``torch.optim`` optimizer's first steps will allocate.

    It is zero if it has them already or is not in ``data/optimizers.toml``.
    """
    row = read_toml("optimizers.toml").get(type(optimizer).__name__.lower())
    if row is None:
        return 0
    return sum(
        (row["states"] + bool(group.get("momentum"))) * weight.numel() * weight.element_size()
        for group in optimizer.param_groups
        for weight in group["params"]
        if weight.grad is not None and not optimizer.state.get(weight)
    )
