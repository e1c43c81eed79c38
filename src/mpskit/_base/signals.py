"""Sections of code that no signal handler interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

__all__ = ["deferred_signals"]


class deferred_signals:  # noqa: N801 - used as `with deferred_signals():`
    """Keep back Ctrl-C and every other signal with a handler in Python until the block is over.

    A handler may raise at any line, which would leave a change to other people's objects half
    made. The handlers run when the block ends, in the order of their signals. Python runs handlers
    in the main thread only, so nothing happens in others.
    """

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._pending: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in sorted(signal.valid_signals()):
                    self._replace(number)
            except BaseException:
                self._restore()
                raise
        return self

    def _replace(self, number: int) -> None:
        handler = signal.getsignal(number)
        if callable(handler):
            self._before[number] = handler
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending.append((number, frame))

    def _restore(self) -> None:
        try:
            self._put_back()
        except BaseException:  # from a handler that was back before the others
            self._put_back()
            raise

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()
        for number, frame in self._pending:
            self._before[number](number, frame)
