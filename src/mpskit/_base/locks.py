"""A lock that no interrupt leaves held.

``with lock`` and ``try`` / ``finally`` have one line each on which a KeyboardInterrupt keeps the
lock: the line that ends the block. Two nested ``finally`` have none.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

__all__ = ["locked", "run_locked"]

_T = TypeVar("_T")
_D = TypeVar("_D")
_P = ParamSpec("_P")


def locked(
    lock: threading.Lock | threading.RLock,
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Return a decorator: the function runs with the lock held."""

    def decorate(work: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(work)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return cast("_T", run_locked(lock, functools.partial(work, *args, **kwargs), None))

        return call

    return decorate


def run_locked(
    lock: threading.Lock | threading.RLock, work: Callable[[], _T], busy: _D, *, timeout: float = -1
) -> _T | _D:
    """Return ``work()``, called with the lock held; ``busy`` if it is not free in time.

    Args:
        lock: the lock.
        work: what to do.
        busy: what to return instead.
        timeout: seconds to wait; -1 waits without end.
    """
    held: list[threading.Lock | threading.RLock] = []
    try:
        try:
            # One line, so that no interrupt comes between the two.
            if not lock.acquire(timeout=timeout) or held.append(lock):  # type: ignore[func-returns-value]
                return busy
            return work()
        finally:
            _release(held)
    finally:
        _release(held)


def _release(held: list[threading.Lock | threading.RLock]) -> None:
    while held:
        held.pop().release()
