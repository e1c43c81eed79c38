"""Finding a batch size that fits by trying, with the next size taken from the error's figures."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mpskit._base.log import log
from mpskit.backends.memory import backend
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceFallbackWarning, OutOfMemory
from mpskit.memory.cache import check_device, clear, devices_in_use
from mpskit.memory.frames import release_frames
from mpskit.memory.oom import OomFigures, explain_oom, figures_of, is_oom

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike

__all__ = ["next_batch_size", "run_with_batch_size"]

_T = TypeVar("_T")

# What of the size that the figures allow is tried. The figures are from the middle of a step, so
# they understate its need: each further failure gives less credit.
_CREDIT = (0.9, 0.75)
_LEAST_CREDIT = 0.5
_NAME = "batch_size"
# The caller of run_with_batch_size(), or of the function that it decorated.
_STACKLEVEL = 4


def next_batch_size(
    batch_size: int,
    figures: OomFigures,
    *,
    failures: int = 1,
    base_bytes: int = 0,
    max_buffer_bytes: int | None = None,
    min: int = 1,  # noqa: A002 - the name that run_with_batch_size gives it
) -> int:
    """Return the size to try after ``batch_size`` ran out of memory: smaller, at least ``min``.

    At the failure the step needed what was held plus what was asked for. Less ``base_bytes``,
    which were there before and do not grow with the batch (weights, optimizer states), that is
    what ``batch_size`` items need at least; the limit less ``base_bytes`` is what there is. The
    size is scaled by the quotient, and by 0.9 after the first failure, 0.75 after the second and
    0.5 after that, because the failure came in the middle of a step whose peak is not known. For
    one buffer that is too large, only that buffer counts. Without figures it is halved.

    Args:
        batch_size: the size that failed.
        figures: what the error said.
        failures: how many sizes have failed so far, this one counted.
        base_bytes: live tensors before the first try, in bytes.
        max_buffer_bytes: the device's largest single buffer.
        min: the smallest size worth trying.
    """
    share = _share(figures, base_bytes, max_buffer_bytes)
    if share is None:
        scaled = batch_size // 2
    else:
        credit = _CREDIT[failures - 1] if failures <= len(_CREDIT) else _LEAST_CREDIT
        scaled = int(batch_size * share * credit)
    # max() and min() by hand: the second is an argument here.
    smaller = scaled if scaled < batch_size else batch_size - 1
    return smaller if smaller > min else min


def _share(figures: OomFigures, base: int, max_buffer: int | None) -> float | None:
    """Return which part of the batch fits by the figures, from 0 to 1; None if they do not say."""
    if figures.requested is None or figures.requested <= 0:
        return None
    if figures.kind == "buffer":
        there, needed = max_buffer, figures.requested
    else:
        there, needed = _room(figures, base)
    if there is None or needed <= 0:
        return None
    return min(1.0, max(0.0, there / needed))


def _room(figures: OomFigures, base: int) -> tuple[int | None, int]:
    """Return the bytes there are for the batch, and those that it needed when it failed."""
    limit, held = figures.max_allowed, figures.allocated
    if limit is None or held is None:
        return None, 0
    if figures.free is not None:
        # The device has memory of its own, and others may hold some of it: that is no room.
        limit = min(limit, figures.free + (figures.cached or 0) + held)
    held += figures.other or 0
    return limit - base, held - base + (figures.requested or 0)


@overload
def run_with_batch_size(
    fn: Callable[..., _T],
    start: int,
    *,
    min: int = ...,
    fallback: Literal["cpu"] | None = ...,
    device: DeviceLike | None = ...,
) -> _T: ...
@overload
def run_with_batch_size(
    fn: int | None = ...,
    start: int | None = ...,
    *,
    min: int = ...,
    fallback: Literal["cpu"] | None = ...,
    device: DeviceLike | None = ...,
) -> Callable[[Callable[..., _T]], Callable[..., _T]]: ...


def run_with_batch_size(
    fn: Callable[..., _T] | int | None = None,
    start: int | None = None,
    *,
    min: int = 1,  # noqa: A002 - the natural name, and nothing here needs the builtin
    fallback: Literal["cpu"] | None = None,
    device: DeviceLike | None = None,
) -> _T | Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Call ``fn(batch_size)``, with a smaller batch for as long as it runs out of memory.

        result = run_with_batch_size(train, 64)

        @run_with_batch_size(64)
        def train(batch_size, model, *, epochs): ...
        train(model, epochs=3)

    After an out-of-memory error the failed call's tensors are let go, the garbage collected and
    the cache emptied; then the next size comes from the error's figures (:func:`next_batch_size`
    has the rule). Any other error is raised at once, untouched.

    Args:
        fn: called with the batch size as its argument ``batch_size``, or as its first one (after
            ``self`` or ``cls``) if it has none of that name. Left out, a decorator is returned:
            every argument of the decorated function is kept, and a caller may give
            ``batch_size=`` to start from.
        start: the first size to try.
        min: the smallest size to try.
        fallback: ``"cpu"``: if even ``min`` does not fit, call ``fn`` once more with
            ``device="cpu"`` and the first size, and warn. ``fn`` must take ``device``.
        device: whose cache to empty (default: those in use). Passed on as ``device`` if ``fn``
            takes one and the caller gave none.

    Returns:
        What ``fn`` returned.

    Raises:
        OutOfMemory: not even ``min`` fits; the backend's error is its ``__cause__``.
        ArgumentError: a size is below 1, ``min`` above ``start``, or the fallback is not possible.
        ArgumentTypeError: an argument has the wrong type, or ``fn`` is async or a generator.

    Warns:
        DeviceFallbackWarning: the fallback was used.
    """
    if isinstance(fn, int) and start is None:
        fn, start = None, fn
    settings = _Settings(_checked_sizes(start, min), min, _checked_fallback(fallback), device)
    check_device(device)
    if fn is not None:
        result: _T = _Search(settings, _Target(fn, fallback), (), {}).run()
        return result
    return functools.partial(_decorated, settings)


@dataclass(frozen=True, slots=True)
class _Settings:
    start: int
    least: int
    fallback: Literal["cpu"] | None
    device: DeviceLike | None


def _decorated(settings: _Settings, function: Callable[..., _T]) -> Callable[..., _T]:
    target = _Target(function, settings.fallback)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> _T:
        result: _T = _Search(settings, target, args, kwargs).run()
        return result

    return wrapper


class _Target:
    """A function, and where its batch size and device go."""

    def __init__(self, function: Any, fallback: str | None) -> None:
        _check_function(function)
        self._function = function
        parameters = _parameters(function)
        self._place = _place(parameters)
        self.takes_device = "device" in parameters or any(
            one.kind is one.VAR_KEYWORD for one in parameters.values()
        )
        if fallback and not self.takes_device:
            raise ArgumentError(
                "fallback='cpu' needs a function that takes device=, to be told to use the CPU",
                given=function,
            )

    def call(self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call with the batch size in its place and every other argument as it came."""
        if self._place is None or len(args) < self._place:
            return self._function(*args, **kwargs, **{_NAME: size})
        return self._function(*args[: self._place], size, *args[self._place :], **kwargs)


class _Search:
    """One call of the function, over as many sizes as it takes."""

    def __init__(
        self, settings: _Settings, target: _Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._settings = settings
        self._target = target
        self._args = args
        self._kwargs = dict(kwargs)
        start = self._kwargs.pop(_NAME, settings.start)
        self._start = _checked_sizes(start, settings.least)
        if settings.device is not None and target.takes_device:
            self._kwargs.setdefault("device", settings.device)
        self._base = _live_bytes(settings.device)

    def run(self) -> Any:
        size, failures = self._start, 0
        while True:
            result, error = self._attempt(size)
            if error is None:
                return result
            if size <= self._settings.least:
                return self._give_up(error)
            failures += 1
            smaller = self._smaller(size, figures_of(error), failures)
            log.info("batch size %d ran out of memory, trying %d", size, smaller)
            size = smaller

    def _attempt(self, size: int, **overrides: Any) -> tuple[Any, Exception | None]:
        try:
            return self._target.call(size, self._args, self._kwargs | overrides), None
        except Exception as error:
            if not is_oom(error):
                raise
            failed = error
        # Out here nothing refers to the failed call but the error itself.
        self._clean(failed)
        return None, failed

    def _clean(self, error: Exception) -> None:
        release_frames(error)
        try:
            clear(self._settings.device, collect=True, wait=True)
        except Exception as trouble:  # noqa: BLE001 - the next try, or the error itself, will tell
            error.add_note(f"mpskit could not clear the cache after this: {trouble!r}")

    def _smaller(self, size: int, figures: OomFigures, failures: int) -> int:
        device = self._settings.device or figures.backend or "cpu"
        largest = backend(device).max_buffer_bytes() if figures.kind == "buffer" else None
        return next_batch_size(
            size,
            figures,
            failures=failures,
            base_bytes=self._base,
            max_buffer_bytes=largest,
            min=self._settings.least,
        )

    def _give_up(self, error: Exception) -> Any:
        """Use the fallback if there is one, else raise what the backend raised, explained."""
        fallback, size = self._settings.fallback, self._settings.least
        if fallback is not None:
            warnings.warn(
                f"not even a batch size of {size} fits on the device, so the CPU is used",
                DeviceFallbackWarning,
                stacklevel=_STACKLEVEL,
            )
            size = self._start
            result, failed = self._attempt(size, device=fallback)
            if failed is None:
                return result
            error = failed
        raise OutOfMemory(
            f"not even a batch size of {size} fits.\n{explain_oom(error)}", given=size
        ) from error


def _live_bytes(device: DeviceLike | None) -> int:
    """Return the bytes of live tensors on the devices in use: what does not grow with a batch."""
    return sum(backend(one).allocated_bytes() or 0 for one in devices_in_use(device))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Some builtins have no signature: the batch size goes first.
        return {}


def _place(parameters: Mapping[str, inspect.Parameter]) -> int | None:
    """Return where the batch size goes among the positional arguments; None: by keyword."""
    if _NAME not in parameters:
        # A method that is decorated in its class has not got its object yet.
        return int(next(iter(parameters), "") in ("self", "cls"))
    by_keyword = parameters[_NAME].kind is inspect.Parameter.KEYWORD_ONLY
    return None if by_keyword else list(parameters).index(_NAME)


def _check_function(function: object) -> None:
    if not callable(function):
        raise ArgumentTypeError(
            f"fn is a function, not {function!r}; a decorator is written @run_with_batch_size(64)",
            given=function,
        )
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(function) for kind in kinds):
        raise ArgumentTypeError(
            "fn runs only after it has returned if it is async or a generator: wrap the part "
            "that computes",
            given=function,
        )


def _checked_sizes(start: Any, least: Any) -> int:
    for name, size in (("start", start), ("min", least)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise ArgumentTypeError(
                f"{name} is a batch size such as 64, not {size!r}: "
                "run_with_batch_size(fn, 64) or @run_with_batch_size(64)",
                given=size,
            )
        if size < 1:
            raise ArgumentError(f"{name} is a batch size from 1, not {size}", given=size)
    if start < least:
        raise ArgumentError(f"start={start} is below min={least}", given=start)
    return int(start)


def _checked_fallback(fallback: Any) -> Literal["cpu"] | None:
    if fallback not in (None, "cpu"):
        raise ArgumentError(f"fallback is 'cpu' or None, not {fallback!r}", given=fallback)
    return "cpu" if fallback else None
