"""How the tracer gets hold of every operator below autograd, autocast and decomposition.

By a dispatch key where torch allows it: a fallback in Python for the unused key ``Fake``, which
stands between the composite kernels and the CPU's. A ``TorchDispatchMode`` sees the same
operators and is the way for older torch, but while one is active torch's own C++ takes detours
(``isTensorSubclassLike``: out of place instead of in place) that no real run takes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

__all__ = ["KERNELS_OF_OPERATORS", "intercepting", "registered_key", "seen_again"]


class Answerer(Protocol):
    """What answers operators in place of their kernels."""

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operator returns; real kernels may be called inside."""
        ...

    def decomposed(self, func: Any) -> bool:
        """Return whether the operator has to be taken apart, with its parts intercepted."""
        ...


class _Active(threading.local):
    """The answerers of this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Answerer] = []


_ACTIVE = _Active()


def intercepting(answerer: Answerer) -> Any:
    """Return a context manager inside which ``answerer`` gets every operator of this thread."""
    key = registered_key()
    return _mode(answerer) if key is None else _Keyed(answerer, key)


@functools.cache
def registered_key() -> Any:
    """Register the fallback once per process; it is inert where no tracer is active.

    None where this torch cannot take one.
    """
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


_KEPT: list[Any] = []


def _intercepted(func: Any, *args: Any, **kwargs: Any) -> Any:
    answerer = _ACTIVE.stack[-1]
    if answerer.decomposed(func):
        result = taken_apart(func, args, kwargs)
        if result is not NotImplemented:
            return result
    with torch._C._ExcludeDispatchKeyGuard(_excluded()):
        return answerer.answer(func, args, kwargs)


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run what an operator consists of, so that its parts are intercepted."""
    if func._schema.name in KERNELS_OF_OPERATORS:
        return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
    return func.decompose(*args, **kwargs)


# Kernels, not compositions, that only call other operators.
KERNELS_OF_OPERATORS = frozenset(
    {"aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention"}
)


@functools.cache
def _excluded() -> Any:
    return torch._C.DispatchKeySet(registered_key())


@contextlib.contextmanager
def seen_again() -> Iterator[None]:
    """Let the operators of the block be seen although a handler is running."""
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


class _Keyed:
    """Switches the key on for this thread."""

    def __init__(self, answerer: Answerer, key: Any) -> None:
        self._answerer = answerer
        self._guard = torch._C._IncludeDispatchKeyGuard(key)
        self._patched: list[str] = []

    def __enter__(self) -> None:
        for name in _UNSEEN:
            if name not in vars(torch.Tensor):
                setattr(torch.Tensor, name, _unseen(getattr(torch.Tensor, name), name))
                self._patched.append(name)
        _ACTIVE.stack.append(self._answerer)
        self._guard.__enter__()

    def __exit__(self, *error: object) -> None:
        self._guard.__exit__(*error)
        _ACTIVE.stack.pop()
        for name in self._patched:
            delattr(torch.Tensor, name)


def _unseen(call: Callable[..., Any], name: str) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_excluded()):
            return call(*args, **kwargs)

    return staticmethod(wrapper) if name == "_make_subclass" else wrapper


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
