"""Intercepts operators below autograd, autocast and decomposition, through a spare dispatch key.

A fallback in Python for the key ``Fake``, which torch leaves unused, stands between the composite
kernels and the CPU's. A ``TorchDispatchMode`` sees the same operators and serves older torch, but
while one is active torch's own C++ takes other paths (``isTensorSubclassLike``: out of place
instead of in place) than a real run.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from mpskit.dispatch.patches import Patches

__all__ = [
    "Answerer",
    "OutsideThread",
    "calls_operators",
    "current",
    "intercepting",
    "registered_key",
    "seen_again",
    "take_off",
]


def take_off(mode: TorchDispatchMode) -> None:
    """Take a mode off this thread's stack if it is there: an interrupt may hinder its ``with``."""
    if mode in _get_current_dispatch_mode_stack():
        mode.__exit__(None, None, None)


class OutsideThread(threading.Thread):
    """A thread that stays outside a simulated Mac, unlike every other new one."""


class Answerer(Protocol):
    """A handler that replaces operators' kernels.

    Answerers compose: while one answers, nothing is intercepted, so it may hand an operator to the
    ``answer`` of another in place of the kernel.
    """

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operator returns; real kernels may be called inside."""
        ...

    def decomposed(self, func: Any) -> bool:
        """Return whether the operator is decomposed, with its parts intercepted."""
        ...


class _Active(threading.local):
    """The answerers of this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Answerer] = []


_ACTIVE = _Active()


def intercepting(answerer: Answerer) -> Any:
    """Return a context manager inside which ``answerer`` gets every operator of this thread."""
    key = registered_key()
    return _mode(answerer) if key is None else _keyed(answerer, key)


def current() -> Answerer | None:
    """Return this thread's answerer, to which another one may pass operators on."""
    return _ACTIVE.stack[-1] if _ACTIVE.stack else None


def registered_key() -> Any:
    """Register the fallback once per process; it is inert where nothing intercepts.

    None where this torch cannot take one.
    """
    if not _KEY:
        with _REGISTERING:
            if not _KEY:
                _KEY.append(_register())
    return _KEY[0]


_KEY: list[Any] = []
_REGISTERING = threading.Lock()
_KEPT: list[Any] = []


def _register() -> Any:
    fallback = getattr(torch.library.Library, "fallback", None)
    parse = getattr(torch._C, "_dispatch_key_parse", None)
    if fallback is None or parse is None:
        return None
    try:
        key = parse("Fake")
        library = torch.library.Library("_", "IMPL")
        library.fallback(_intercepted, "Fake")
    except RuntimeError:
        return None
    _KEPT.append(library)
    return key


def _intercepted(func: Any, *args: Any, **kwargs: Any) -> Any:
    answerer = _ACTIVE.stack[-1]
    if answerer.decomposed(func):
        result = taken_apart(func, args, kwargs)
        if result is not NotImplemented:
            return result
    with torch._C._ExcludeDispatchKeyGuard(_excluded()):
        return answerer.answer(func, args, kwargs)


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator's decomposition, so that its parts are intercepted."""
    if calls_operators(func):
        return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
    return func.decompose(*args, **kwargs)


def calls_operators(func: Any) -> bool:
    """Return whether an operator's kernel, not a composite, only calls other operators."""
    return func._schema.name in _KERNELS_OF_OPERATORS


_KERNELS_OF_OPERATORS = frozenset(
    {"aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention"}
)


@functools.cache
def _excluded() -> Any:
    return torch._C.DispatchKeySet(registered_key())


@contextlib.contextmanager
def seen_again() -> Iterator[None]:
    """Intercept the operators of the block although a handler is running."""
    key = registered_key()
    if key is None:
        yield
        return
    include = torch._C._dispatch_tls_local_include_set() | torch._C.DispatchKeySet(key)
    exclude = torch._C._dispatch_tls_local_exclude_set().remove(key)
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        yield


# Both make an object of another class for the result of an operator that they call themselves;
# intercepted, the result would have an object of its own by then. Neither touches data.
_UNSEEN = ("_make_subclass", "as_subclass")


@contextlib.contextmanager
def _keyed(answerer: Answerer, key: Any) -> Iterator[None]:
    """Switch the key on for this thread."""
    stack = _ACTIVE.stack
    depth = len(stack)
    patches = Patches()
    patches.on_exit(lambda: stack.__delitem__(slice(depth, None)))
    try:
        with patches:
            for name in _UNSEEN:
                patches.bind(torch.Tensor, name, _unseen)
            stack.append(answerer)
            with torch._C._IncludeDispatchKeyGuard(key):
                yield
    finally:
        patches.undo()  # if an interrupt came before the undo began


def _unseen(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_excluded()):
            return call(*args, **kwargs)

    return wrapper


def _mode(answerer: Answerer) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    plain = frozenset({torch.Tensor, torch.nn.Parameter})

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if types and not plain.issuperset(types):  # a subclass unwraps itself first
                return NotImplemented
            if answerer.decomposed(func):
                with self:
                    result = taken_apart(func, args, kwargs or {})
                if result is not NotImplemented:
                    return result
            return answerer.answer(func, args, kwargs or {})

    mode: Any = Mode
    return mode()
