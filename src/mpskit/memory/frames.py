"""Releases the tensors that an exception's traceback keeps alive.

A traceback holds its frames, and each frame its local variables: after an out-of-memory error every
activation of the failed step stays alive as long as the exception does, so emptying the cache frees
nothing.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType

__all__ = ["release_frames"]

_RESUMABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_RESUMABLE |= inspect.CO_ITERABLE_COROUTINE
# Types that own a frame until they finish -> the attribute that holds it.
_OWNERS = {
    GeneratorType: "gi_frame",
    CoroutineType: "cr_frame",
    AsyncGeneratorType: "ag_frame",
}


def release_frames(exc: BaseException) -> int:
    """Clear the local variables of an exception's finished frames; return how many.

    The exceptions that led to it (causes, contexts, members of a group) are cleared too. Running
    frames are left alone, and so are generators and coroutines that can be resumed; one that raised
    is finished, and its frame is cleared. The traceback keeps its files and lines, but a debugger
    finds no variables in it.
    """
    return sum(_clear(frame) for member in _family(exc) for frame in _frames(member))


def _family(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exception and all those linked to it, each once."""
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
    if frame.f_code.co_flags & _RESUMABLE and _is_owned(frame):
        return False
    try:
        frame.clear()
    except RuntimeError:
        # A running frame: that of the `with`, or one above it.
        return False
    return True


def _is_owned(frame: FrameType) -> bool:
    """Return whether a generator or coroutine may still be resumed with this frame.

    Clearing such a frame would close its owner (Python 3.13 refuses). An owner that has finished no
    longer refers to its frame.
    """
    return any(
        getattr(one, _OWNERS[type(one)]) is frame
        for one in gc.get_referrers(frame)
        if type(one) in _OWNERS
    )
