"""Letting go of the tensors that an exception's traceback keeps alive.

A traceback holds its frames, and each frame its local variables: after an out-of-memory error
every activation of the failed step stays alive for as long as somebody holds the exception, so
that emptying the cache frees nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType

__all__ = ["release_frames"]

# Clearing a generator's frame would close the generator, and its user may still want it.
_RESUMABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_RESUMABLE |= inspect.CO_ITERABLE_COROUTINE


def release_frames(exc: BaseException) -> int:
    """Clear the local variables of an exception's finished frames; return how many.

    The exceptions that led to it (causes, contexts, members of a group) are cleared too. Frames
    that still run are left alone, and so are those of generators and coroutines. The traceback
    keeps its files and lines; only a debugger that looks at it afterwards finds no variables.
    """
    return sum(_clear(frame) for member in _family(exc) for frame in _frames(member))


def _family(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exception and all that hang on it, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        member = waiting.pop()
        if member is None or id(member) in seen:
            continue
        seen.add(id(member))
        waiting += [member.__cause__, member.__context__]
        if isinstance(member, BaseExceptionGroup):
            waiting += member.exceptions
        yield member


def _frames(exc: BaseException) -> Iterator[FrameType]:
    traceback = exc.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _clear(frame: FrameType) -> bool:
    if frame.f_code.co_flags & _RESUMABLE:
        return False
    try:
        frame.clear()
    except RuntimeError:
        # It still runs: this is the frame of the `with`, or one above it.
        return False
    return True
