"""Gets hold of every operator below autograd, without torch noticing that somebody looks.

A fallback in Python for the dispatch key ``Fake``, which nothing in torch uses, stands between
autograd and the CPU's kernels. A ``TorchDispatchMode`` sees the same operators, but while one is
active torch's C++ takes detours (``isTensorSubclassLike``: out of place instead of in place,
``linalg_eig`` instead of ``linalg_eigvals``) that a real run never takes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpskit.simulation.patches import Patches

__all__ = ["install", "intercepting", "seen_again"]

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class _Active(threading.local):
    """The handlers of this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Handler] = []


_active = _Active()
_libraries: list[Any] = []


@contextlib.contextmanager
def intercepting(handler: Handler) -> Iterator[None]:
    """Give every operator of this thread to ``handler``, whose own operators are not seen."""
    key, _ = _keys()
    _active.stack.append(handler)
    try:
        with torch._C._IncludeDispatchKeyGuard(key):
            yield
    finally:
        _active.stack.pop()


@contextlib.contextmanager
def seen_again() -> Iterator[None]:
    """Let the operators of the block be seen although a handler is running."""
    key, alone = _keys()
    include = torch._C._dispatch_tls_local_include_set() | alone
    exclude = torch._C._dispatch_tls_local_exclude_set().remove(key)
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        yield


def install(patches: Patches) -> None:
    """Keep out of two functions that make an object for the result of their own operator.

    Intercepted, the result has an object of its own by then. Neither touches data.
    """
    for name in ("_make_subclass", "as_subclass"):
        static = name == "_make_subclass"
        unseen = _unseen(getattr(torch.Tensor, name))
        patches.set(torch.Tensor, name, staticmethod(unseen) if static else unseen)


def _unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_keys()[1]):
            return function(*args, **kwargs)

    return call


def _intercepted(func: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_keys()[1]):
        return _active.stack[-1](func, args, kwargs)


@functools.cache
def _keys() -> tuple[Any, Any]:
    """Register the fallback, once per process: it is inert where no handler is active."""
    key = torch._C._dispatch_key_parse("Fake")
    library = torch.library.Library("_", "IMPL")  # noqa: TOR901 - lives as long as the process
    library.fallback(_intercepted, "Fake")
    _libraries.append(library)
    return key, torch._C.DispatchKeySet(key)
