"""Lets users' dispatch modes and tensor subclasses live inside a simulation.

While such a mode is active, or where an operator gets a tensor with a ``__torch_dispatch__`` of its
own, torch cannot run a fallback that was registered from Python. So from then on the thread's
handler sits on the stack of modes as well, below the user's, and not behind the dispatch key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit.dispatch.intercept import registered_key
from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import Simulation
from mpskit.simulation.dispatch import Dispatch

__all__ = ["Bridge", "install"]

_enter: Any = TorchDispatchMode.__enter__
_exit: Any = TorchDispatchMode.__exit__
_make_wrapper: Any = torch.Tensor._make_wrapper_subclass
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


class Bridge(TorchDispatchMode):
    """One thread's handler as a mode; off until something needs it."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dispatch = dispatch
        self._guard: Any = None
        self._users = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch asks: yes would wrap the handler and import all of dynamo at the first operator.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand the operator to the thread's handler; a subclass has to unwrap itself first."""
        if not all(kind in _PLAIN or kind.__name__ == "FakeTensor" for kind in types):
            return NotImplemented
        if func.namespace == "prim":  # a question about a subclass, which no dispatcher knows
            return func(*args, **(kwargs or {}))
        return self._dispatch.answer(func, args, kwargs or {})

    @property
    def is_open(self) -> bool:
        """Whether the handler is on the stack of modes."""
        return self._guard is not None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Push the mode once more, while its own handler runs."""
        _enter(self)
        try:
            yield
        finally:
            _exit(self, None, None, None)

    def open(self) -> None:
        """Take the place of the dispatch key, until as many calls of ``leave``."""
        self._users += 1
        key = registered_key()
        if self._guard is None and key is not None:
            self._guard = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key))
            self._guard.__enter__()
            _enter(self)

    def leave(self) -> None:
        """Undo one ``open``."""
        self._users -= 1
        if not self._users:
            self.close()

    def close(self) -> None:
        """Go back behind the dispatch key."""
        if self._guard is not None:
            _exit(self, None, None, None)
            self._guard.__exit__(None, None, None)
            self._guard = None


def install(simulation: Simulation, patches: Patches) -> None:
    """Open the bridge of the thread whenever a mode or a subclass asks for it."""

    def enter(self: Any) -> Any:
        bridge = simulation.state().bridge
        if bridge is not None:
            bridge.open()
        return _enter(self)

    def leave(self: Any, *error: Any) -> Any:
        result = _exit(self, *error)
        bridge = simulation.state().bridge
        if bridge is not None:
            bridge.leave()
        return result

    def make_wrapper(*args: Any, **kwargs: Any) -> Any:
        bridge = simulation.state().bridge
        if bridge is not None:
            bridge.open()  # for as long as the thread is inside: the tensor may live that long
        return _make_wrapper(*args, **kwargs)

    patches.set(TorchDispatchMode, "__enter__", enter)
    patches.set(TorchDispatchMode, "__exit__", leave)
    patches.set(torch.Tensor, "_make_wrapper_subclass", staticmethod(make_wrapper))
