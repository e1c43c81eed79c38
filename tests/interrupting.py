"""A KeyboardInterrupt at each line of mpskit that a piece of work runs, one after another."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import mpskit

SOURCE = str(Path(mpskit.__file__).parent)


def interrupted_at_each_line(work: Callable[[], object], *, every: int = 1) -> Iterator[str]:
    """Interrupt ``work`` at its first line in mpskit, then at its second (or ``every`` n-th) line.

    Yields where it was interrupted, as ``file:line:function``, once the exception is gone and the
    garbage collected, until the work runs to its end. Finalizers are left out: Python drops what
    is raised in them.
    """
    for number in range(1, 100_000, every):
        where = _interrupted(work, number)
        # What the exception held is young.
        gc.collect(1)
        if where is None:
            return
        yield where


def _interrupted(work: Callable[[], object], number: int) -> str | None:
    seen, where, before = 0, None, sys.gettrace()

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, where
        if event == "line" and where is None:
            seen += 1
            if seen == number:
                name = Path(frame.f_code.co_filename).name
                where = f"{name}:{frame.f_lineno}:{frame.f_code.co_name}"
                raise KeyboardInterrupt
        return lines

    def calls(frame: FrameType, _event: str, _: Any) -> Any:
        code = frame.f_code
        traced = code.co_filename.startswith(SOURCE) and not _in_finalizer(frame)
        return lines if traced and where is None else None

    sys.settrace(calls)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return where


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in {"__del__", "_drop"}:  # the latter of a weak reference
            return True
        frame = frame.f_back
    return False
