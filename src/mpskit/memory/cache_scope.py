"""Clears the cache around a block of work, or periodically in a loop."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mpskit._base.arguments import shown
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.memory.amounts import Amount, amount_bytes
from mpskit.memory.cache import CacheReport, check_device, clear, devices_in_use
from mpskit.memory.frames import release_frames
from mpskit.memory.oom import is_oom

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike

__all__ = ["CacheKeeper", "empty_cache_scope"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_DEFAULT_ABOVE = 0.25
_ANY_SIZE = 2**50


class empty_cache_scope:  # noqa: N801 - used like a function, as contextlib's own managers are
    """Empty the cache before or after a block; ``with``, ``async with`` or decorator.

        with empty_cache_scope(above="2GiB"):
            evaluate(model)

        @empty_cache_scope("mps", before=True)
        def load(): ...

    The body's exception is never hidden or replaced: an error of the clearing itself becomes a note
    on it. If the body ran out of memory, the local variables of its finished frames are released
    first (not those of generators that can be resumed) and the garbage is collected, so that the
    memory is really freed. On the CPU it only collects. One object may be used many times, nested,
    in threads and inside generators. ``async with`` clears in the event loop's thread and blocks
    it: in a server, pass ``above`` so that this is rare.

    Args:
        device: which device; None for those this process uses when the clear is due.
        before: clear on entry.
        after: clear on exit, also after an error.
        collect: collect Python's garbage too, which takes about 0.1 s in a process with many
            modules; False suits a scope that is entered often.
        above: clear only if at least this much could be freed: bytes, ``"2GiB"``, ``"25%"`` or a
            fraction of the device's memory. It is ignored after an out-of-memory error.

    Attributes:
        report: what the last clear did; None before the first.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: there is no such device, or ``above`` is no amount.
    """

    __slots__ = ("_above", "_after", "_before", "_collect", "_device", "report")

    def __init__(
        self,
        device: DeviceLike | None = None,
        *,
        before: bool = False,
        after: bool = True,
        collect: bool = True,
        above: Amount | None = None,
    ) -> None:
        if device is not None:
            check_device(device)
        if above is not None:
            amount_bytes(above, _ANY_SIZE, "above")
        self._device = device
        self._before = before
        self._after = after
        self._collect = collect
        self._above = above
        self.report: CacheReport | None = None

    def __enter__(self) -> Self:
        if self._before:
            self._clear()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._clear_after(exc)
        elif self._after:
            self._clear()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, exc, traceback)

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function: plain, async, generator or async generator.

        A generator's scope lasts until it ends or is closed.
        """
        if not callable(function):
            raise ArgumentTypeError(
                f"only functions are decorated, not {shown(function)}", given=function
            )
        wrapper: Any = functools.wraps(function)(self._wrapped(function))
        return wrapper  # type: ignore[no-any-return]

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):
            return _around_coroutine(self, function)
        if inspect.isasyncgenfunction(function):
            return _around_async_generator(self, function)
        if inspect.isgeneratorfunction(function):
            return _around_generator(self, function)
        return _around_function(self, function)

    def _clear(self, *, oom: bool = False) -> None:
        if not (self._collect or oom or devices_in_use(self._device)):
            return
        report = clear(
            self._device,
            collect=self._collect or oom,
            above=None if oom else self._above,
            wait=oom,
        )
        if report is not None:
            self.report = report

    def _clear_after(self, exc: BaseException) -> None:
        """Clean up after the body's error, which takes precedence over any error in here."""
        try:
            oom = is_oom(exc)
            if oom:
                release_frames(exc)
            if self._after:
                self._clear(oom=oom)
        except Exception as error:  # noqa: BLE001 - the body's error takes precedence
            exc.add_note(f"mpskit could not clear the cache after this: {error!r}")


def _around_function(scope: empty_cache_scope, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with scope:
            return function(*args, **kwargs)

    return wrapper


def _around_coroutine(scope: empty_cache_scope, function: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with scope:
            return await function(*args, **kwargs)

    return wrapper


def _around_generator(scope: empty_cache_scope, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with scope:
            return (yield from function(*args, **kwargs))

    return wrapper


def _around_async_generator(
    scope: empty_cache_scope, function: Callable[..., Any]
) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        # asend() reaches the inner generator; athrow() closes it instead.
        async with scope, aclosing(function(*args, **kwargs)) as inner:
            sent = None
            while True:
                try:
                    item = await inner.asend(sent)
                except StopAsyncIteration:
                    return
                sent = yield item

    return wrapper


class CacheKeeper:
    """Empty the cache periodically in a loop, not in every step.

        keeper = CacheKeeper("mps", every=100)
        for batch in loader:
            train(batch)
            keeper.step()

    Args:
        device: which device; None for those this process uses.
        every: check only every so many steps; each step if not given.
        above: clear only if at least this much could be freed: bytes, ``"2GiB"``, ``"25%"`` or a
            fraction of the device's memory. Without both arguments a quarter of it.
        collect: collect Python's garbage before clearing.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: ``every`` is below 1, there is no such device, or ``above`` is no amount.
    """

    def __init__(
        self,
        device: DeviceLike | None = None,
        every: int | None = None,
        above: Amount | None = None,
        *,
        collect: bool = False,
    ) -> None:
        check_device(device)
        if above is not None:
            amount_bytes(above, _ANY_SIZE, "above")
        self._device = device
        self._every = _checked_every(every)
        self._above = _DEFAULT_ABOVE if every is None and above is None else above
        self._collect = collect
        self._steps = itertools.count(1)

    def step(self) -> CacheReport | None:
        """Count one step, and clear if it is due; return the report if it was, else None."""
        if next(self._steps) % self._every:
            return None
        return clear(self._device, collect=self._collect, above=self._above)


def _checked_every(every: int | None) -> int:
    if every is None:
        return 1
    if isinstance(every, bool) or not isinstance(every, int):
        raise ArgumentTypeError(f"every must be a number of steps, got {shown(every)}", given=every)
    if every < 1:
        raise ArgumentError(f"every must be at least 1 step, got {shown(every)}", given=every)
    return every
