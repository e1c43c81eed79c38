"""Knows at each moment which module runs and in which phase of the step."""

from __future__ import annotations

import bisect
import functools
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

from mpskit.dispatch.patches import Patches
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.estimate.trace.user_line import UNKNOWN, CallerLines, Line

__all__ = ["ModuleTracker"]

# The frames between an operator that records a storage and the search for its line, at least.
_TRACER_FRAMES = 6


class ModuleTracker:
    """Keeps ``log.where`` true while a step runs on this thread.

    Args:
        model: whose modules are named; None where a subclass names them as they are called.
        log: whose ``where`` it is.
        first: the phase that a step begins in.
    """

    def __init__(self, model: torch.nn.Module | None, log: StorageLog, first: str) -> None:
        self.log = log
        self.where = log.where
        self._base = first
        self._thread = get_ident()
        self._depth = 0
        self._names: dict[int, str] = {}
        self._parameters: list[torch.nn.Parameter] = []
        if model is not None:
            root = type(model).__name__
            self._names = {id(module): name or root for name, module in model.named_modules()}
            self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._open = 0
        self._numbers: list[int] = []
        self._paths: list[str] = []
        # The same for lines: the first node made at each.
        self._line_numbers: list[int] = []
        self._lines: list[Line | None] = []
        self._callers = CallerLines(sys._getframe(1).f_code)
        self._stepping: Line | None = None

    def install(self, patches: Patches) -> None:
        """Watch modules, backward passes and optimizers until ``patches`` are undone."""
        self.where.line = self.user_line
        patches.bind(torch.nn.Module, "_call_impl", self._call)
        for owner in (torch.autograd, torch.autograd.graph):
            patches.bind(owner, "_engine_run_backward", self._backward)
        # Not by torch's functions: another thread may be inside its hooks, and the dictionaries
        # that they iterate over must not change.
        optimizers: Any = importlib.import_module("torch.optim.optimizer")
        for kind, hook in (("pre", self._before_step), ("post", self._after_step)):
            name = f"_global_optimizer_{kind}_hooks"
            patches.derive(optimizers, name, functools.partial(_with, self, hook))

    def begin(self, step: int) -> None:
        """Start a step."""
        self.where.step = step
        self.where.phase = self._base
        self.where.failed = None
        self._numbers.clear()
        self._paths.clear()
        self._line_numbers.clear()
        self._lines.clear()
        self._mark("")

    def backward_module(self) -> str:
        """Return the module whose forward pass made the autograd node that runs now."""
        node = None if self._open else torch._C._current_autograd_node()
        if node is None:
            return self.where.module
        index = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._paths[index] if index >= 0 else ""

    def user_line(self) -> Line | None:
        """Return the user's own line that runs; in a backward pass the one that is undone."""
        if self.where.phase == "optimizer":
            return self._stepping
        line = self._callers.innermost(_TRACER_FRAMES)
        if self._depth == 0:
            number = _sequence_number() - 1
            if not self._lines or (line != self._lines[-1] and number > self._line_numbers[-1]):
                self._line_numbers.append(number)
                self._lines.append(line)
            return line
        node = torch._C._current_autograd_node() if line is None else None
        if node is None:
            return line
        index = bisect.bisect_right(self._line_numbers, node._sequence_nr()) - 1
        return self._lines[index] if index >= 0 else None

    def _call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call of a module, with its name marked as the one that runs."""

        def run(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            outer = self.where.module
            self._open += 1
            self._callers.outside.append(UNKNOWN)
            self._mark(self._name(module, outer))
            try:
                return call(module, *args, **kwargs)
            except BaseException:
                self.where.failed = self.where.failed or self.where.module
                raise
            finally:
                self._open -= 1
                self._callers.outside.pop()
                self._mark(outer)

        self._callers.call = run.__code__
        return run

    def _name(self, module: torch.nn.Module, outer: str) -> str:
        """Return a module's path; one that is not the model's has that of its caller."""
        return self._names.get(id(module), outer)

    def _mark(self, path: str) -> None:
        self.where.module = path
        if self._depth == 0:
            self._numbers.append(_sequence_number())
            self._paths.append(path)

    def _backward(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            if self._depth == 0:
                self.log.keep_activations()
                self.where.locate = self.backward_module
            self._depth += 1
            before, self.where.phase = self.where.phase, "backward"
            try:
                return run(*args, **kwargs)
            finally:
                self.where.phase = before
                self._depth -= 1
                if self._depth == 0:
                    self.where.locate = None
                self._take_gradients()

        self._callers.backward = backward.__code__
        return backward

    def _take_gradients(self) -> None:
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                self.log.classify(gradient.untyped_storage(), "gradients")

    def _before_step(self, *_: Any) -> None:
        if get_ident() == self._thread:
            self.where.phase = "optimizer"
            self._stepping = self._callers.innermost()

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if get_ident() != self._thread:
            return
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    self.log.classify(value.untyped_storage(), "optimizer")
        self.where.phase = self._base


def _sequence_number() -> int:
    """Return the number that this thread's next autograd node gets."""
    core: Any = torch._C
    number: int = core._autograd._get_sequence_nr()
    return number


def _with(key: object, hook: object, hooks: dict[Any, Any]) -> OrderedDict[Any, Any]:
    return OrderedDict({**hooks, key: hook})
