"""Knows at each moment which module runs and in which phase of the step."""

from __future__ import annotations

import bisect
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from mpskit.estimate.trace.storage_log import Ledger

__all__ = ["Scope"]


class Scope:
    """Hooks that keep ``ledger.where`` true while a step runs."""

    def __init__(self, model: torch.nn.Module, ledger: Ledger, first: str) -> None:
        self.ledger = ledger
        self.where = ledger.where
        self._base = first
        self._depth = 0
        root = type(model).__name__
        self._names = {id(module): name or root for name, module in model.named_modules()}
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._stack: list[str] = []
        self._numbers: list[int] = []
        self._paths: list[str] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Install every hook, and take it away after."""
        with contextlib.ExitStack() as stack:
            for handle in self._hooks():
                stack.callback(handle.remove)
            owners: tuple[Any, ...] = (torch.autograd, torch.autograd.graph)
            for owner in owners:
                run = owner._engine_run_backward
                stack.callback(setattr, owner, "_engine_run_backward", run)
                owner._engine_run_backward = self._backward(run)
            yield

    def begin(self, step: int) -> None:
        """Start a step."""
        self.where.step = step
        self.where.phase = self._base
        self.where.failed = None
        self._numbers.clear()
        self._paths.clear()
        self._mark("")

    def backward_module(self) -> str:
        """Return the module whose forward pass made the autograd node that runs now."""
        node = None if self._stack else torch._C._current_autograd_node()
        if node is None:
            return self.where.module
        index = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._paths[index] if index >= 0 else ""

    def _hooks(self) -> Iterator[Any]:
        yield torch_module.register_module_forward_pre_hook(self._enter)
        yield torch_module.register_module_forward_hook(self._leave, always_call=True)
        optimizers: Any = importlib.import_module("torch.optim.optimizer")
        yield optimizers.register_optimizer_step_pre_hook(self._before_step)
        yield optimizers.register_optimizer_step_post_hook(self._after_step)

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        name = self._names.get(id(module))
        self._stack.append(self.where.module if name is None else name)
        self._mark(self._stack[-1])

    def _leave(self, *_: Any) -> None:
        if self.where.failed is None and sys.exc_info()[0] is not None:
            self.where.failed = self.where.module
        if self._stack:
            self._stack.pop()
        self._mark(self._stack[-1] if self._stack else "")

    def _mark(self, path: str) -> None:
        self.where.module = path
        if self._depth == 0:
            core: Any = torch._C
            self._numbers.append(core._autograd._get_sequence_nr())
            self._paths.append(path)

    def _backward(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            if self._depth == 0:
                self.ledger.keep_activations()
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

        return backward

    def _take_gradients(self) -> None:
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                self.ledger.classify(gradient.untyped_storage(), "gradients")

    def _before_step(self, *_: Any) -> None:
        self.where.phase = "optimizer"

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    self.ledger.classify(value.untyped_storage(), "optimizer")
        self.where.phase = self._base
