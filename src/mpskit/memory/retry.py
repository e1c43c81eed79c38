"""Finds a batch size that fits by trying: a step that reaches its optimizer fits."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from mpskit._base.arguments import shown
from mpskit._base.log import log
from mpskit.backends.memory import backend
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceFallbackWarning, OutOfMemory
from mpskit.memory.batch_search import BatchSearch, limit_of, share_that_fits, sizes_dividing
from mpskit.memory.cache import check_device, clear, devices_in_use
from mpskit.memory.cpu_use import CpuUse
from mpskit.memory.frames import release_frames
from mpskit.memory.gradients import Gradients
from mpskit.memory.oom import figures_of, is_oom
from mpskit.memory.oom_advice import explain_oom
from mpskit.memory.optimizer_watch import Left, OptimizerWatch, states_to_come
from mpskit.system.heap import returning_large_blocks

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike

__all__ = ["run_with_batch_size"]

_T = TypeVar("_T")
_R_co = TypeVar("_R_co", covariant=True)
_P = ParamSpec("_P")
_S = TypeVar("_S")

_NAME, _ACCUMULATE = "batch_size", "accumulate"
# The caller of run_with_batch_size(), or of the function that it decorated.
_STACKLEVEL = 4
# The result of a call that took this long is worth more than a larger batch.
_LONG_SECONDS = 10.0
# A failure in a later step is the data's or a leak's: a smaller size, judged no later, is tried.
_LATEST_STEP = 4
_clock = time.monotonic
_GRADIENTS = (
    "the call that ran out of memory has added to gradients that existed before it, and a "
    "second one would add to them again: call zero_grad() first in the function, or before it"
)


class _Sized(Protocol[_P, _R_co]):
    """A function whose batch size is found for it; ``batch_size=`` says where to start."""

    @overload
    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...
    @overload
    def __call__(self, *args: Any, batch_size: int, **kwargs: Any) -> _R_co: ...


class _Decorator(Protocol):
    """Removes the batch size from a function's signature; in a method it follows ``self``."""

    @overload
    def __call__(self, function: Callable[Concatenate[int, _P], _T], /) -> _Sized[_P, _T]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[_S, int, _P], _T], /
    ) -> Callable[Concatenate[_S, _P], _T]: ...
    @overload
    def __call__(self, function: Callable[..., _T], /) -> Callable[..., _T]: ...


@overload
def run_with_batch_size(
    fn: Callable[..., _T],
    start: int | None = ...,
    *,
    min: int = ...,
    effective: int | None = ...,
    repeat: bool = ...,
    fallback: Literal["cpu"] | None = ...,
    device: DeviceLike | None = ...,
) -> _T: ...
@overload
def run_with_batch_size(
    fn: int | None = ...,
    start: int | None = ...,
    *,
    min: int = ...,
    effective: int | None = ...,
    repeat: bool = ...,
    fallback: Literal["cpu"] | None = ...,
    device: DeviceLike | None = ...,
) -> _Decorator: ...


def run_with_batch_size(
    fn: Callable[..., Any] | int | None = None,
    start: int | None = None,
    *,
    min: int = 1,  # noqa: A002 - the natural name, and nothing here needs the builtin
    effective: int | None = None,
    repeat: bool = True,
    fallback: Literal["cpu"] | None = None,
    device: DeviceLike | None = None,
) -> Any:
    """Call ``fn(batch_size)`` with at least 90% of the largest batch that fits.

        result = run_with_batch_size(train, 64)

        @run_with_batch_size(64)
        def train(batch_size, model, *, epochs): ...
        train(model, epochs=3)

        @run_with_batch_size(effective=32)
        def train(batch_size, model, *, accumulate): ...

    After an out-of-memory error the failed call's tensors are released, the gradients it added
    removed, the garbage collected and the cache emptied; then a smaller size is tried. Any other
    error propagates at once, unchanged.

    A size fits as soon as the call reaches its first ``optimizer.step()``. If a larger one may fit,
    the call is aborted there, before any weight has changed, by a ``BaseException``, and its memory
    use says which size to try. A call without an optimizer fits when it returns; it is repeated
    with a larger size unless it took over 10 s. So ``fn`` starts from the beginning each time, as
    it must after an error.

    Args:
        fn: called with the batch size as its argument ``batch_size``, or as its first one (after
            ``self`` or ``cls``) if it has none of that name. If omitted, a decorator is returned:
            the decorated function keeps its other arguments, and a caller may pass ``batch_size=``
            to start from.
        start: the first and largest size to try; ``effective`` if omitted.
        min: the smallest size to try.
        effective: the batch size to keep by accumulating gradients: only sizes that divide it are
            tried, and ``fn`` is given ``accumulate=effective // batch_size``.
        repeat: False makes the first size that fits final; no call is aborted or repeated.
        fallback: ``"cpu"`` calls ``fn`` once more with ``device="cpu"`` and the first size if even
            ``min`` does not fit, and warns. ``fn`` must take ``device``.
        device: whose cache to empty (default: those in use). Passed on as ``device`` if ``fn``
            takes one and the caller gave none.

    Returns:
        What ``fn`` returned.

    Raises:
        OutOfMemory: not even ``min`` fits, or a failed call has written to gradients that existed
            before it; the backend's error is its ``__cause__``.
        ArgumentError: a size is below 1, ``min`` above ``start``, ``start`` does not divide
            ``effective``, or the fallback is not possible.
        ArgumentTypeError: an argument has the wrong type, or ``fn`` is async or a generator.

    Warns:
        DeviceFallbackWarning: the fallback was used.
    """
    if isinstance(fn, int) and start is None:
        fn, start = None, fn
    if effective is not None:
        _check_size("effective", effective)
        start = effective if start is None else start
    settings = _Settings(start, min, effective, repeat, _checked_fallback(fallback), device)
    _sizes(start, settings)
    check_device(device)
    if fn is not None:
        return _Search(settings, _Target(fn, settings), (), {}).run()
    return functools.partial(_decorated, settings)


@dataclass(frozen=True, slots=True)
class _Settings:
    start: Any
    least: int
    effective: int | None
    repeat: bool
    fallback: Literal["cpu"] | None
    device: DeviceLike | None


def _decorated(settings: _Settings, function: Callable[..., _T]) -> Callable[..., _T]:
    target = _Target(function, settings)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> _T:
        result: _T = _Search(settings, target, args, kwargs).run()
        return result

    return wrapper


class _Target:
    """A function, and where its batch size and device go."""

    def __init__(self, function: Any, settings: _Settings) -> None:
        _check_function(function)
        self._function = function
        parameters = _parameters(function)
        self._place = _place(parameters)
        self._any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._names = parameters.keys()
        self._gradients: Gradients | None = None
        if settings.fallback and not self.takes("device"):
            raise ArgumentError(
                "fallback='cpu' needs a function that takes device=, to be told to use the CPU",
                given=function,
            )
        if settings.effective is not None and not self.takes(_ACCUMULATE):
            raise ArgumentError(
                "effective= needs a function that takes accumulate=, the batches to accumulate per "
                "step",
                given=function,
            )

    def takes(self, name: str) -> bool:
        return self._any or name in self._names

    def gradients(self) -> Gradients:
        """Return the present gradients; a decorated function's leaves are searched for once."""
        known = None if self._gradients is None else self._gradients.leaves
        self._gradients = Gradients(known)
        return self._gradients

    def call(self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call with the batch size in its place and every other argument as it came."""
        if self._place is None or len(args) < self._place:
            return self._function(*args, **kwargs, **{_NAME: size})
        return self._function(*args[: self._place], size, *args[self._place :], **kwargs)


class _Outcome(NamedTuple):
    """How a call ended: out of memory, with a result, or left at its optimizer (neither)."""

    error: Exception | None = None
    result: Any = None
    returned: bool = False
    final: bool = False


class _Search:
    """One call of the function, over as many sizes as it takes."""

    def __init__(
        self, settings: _Settings, target: _Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._settings = settings
        self._target = target
        self._args = args
        self._kwargs = dict(kwargs)
        self._sizes = _sizes(self._kwargs.pop(_NAME, settings.start), settings)
        if settings.device is not None and target.takes("device"):
            self._kwargs.setdefault("device", settings.device)
        self._on_device = bool(devices_in_use(settings.device))
        self._cpu = None if self._on_device else CpuUse.now()
        measured = self._on_device or self._cpu is not None
        self._search = BatchSearch(self._sizes, measured=measured and settings.repeat)
        # The next size that fits is final: a call with it runs to its end.
        self._settled = not settings.repeat
        # An optimizer's first step allocates its states, and heaps may fill up only later; after a
        # failure there, a size is judged by as many steps.
        self._judged_step = 1
        self._base = 0
        self._error: Exception | None = None

    def run(self) -> Any:
        """Return the function's result with the size found."""
        with contextlib.nullcontext() if self._cpu is None else returning_large_blocks():
            size, kept = self._sizes[-1], _Outcome()
            while True:
                outcome = self._attempt(size)
                if outcome.final:
                    return outcome.result
                if outcome.returned:
                    kept = outcome
                if outcome.error is not None:
                    self._failed(size, outcome.error)
                self._look()
                low, following = self._search.low, self._search.next()
                if following is None and low is None:
                    return self._give_up()
                if following is None and kept.returned:
                    return kept.result
                self._settled = self._settled or following is None
                state = "fits" if outcome.error is None else "ran out of memory"
                size, before = following or low or size, size
                log.info("batch size %d %s, trying %d", before, state, size)

    def _look(self) -> None:
        """Read what the CPU's limit leaves for the next try if no device is used."""
        self._cpu = None if self._on_device else CpuUse.now()
        if self._cpu is not None:
            self._search.limited(self._cpu.room)

    def _attempt(self, size: int, **overrides: Any) -> _Outcome:
        """Call the function with a size, and clean up after it unless it was the last call."""
        gradients = self._target.gradients()
        self._base = _live_bytes(self._settings.device)
        began = _clock()
        watch = OptimizerWatch(
            lambda optimizer: self._is_final(size, gradients, states_to_come(optimizer)),
            step=self._judged_step,
        )
        try:
            with watch:
                result = self._call(size, overrides)
        except (Exception, Left) as error:
            if not watch.left and not (isinstance(error, Exception) and is_oom(error)):
                raise
            ended: BaseException = error
        else:
            long = watch.steps > 0 or _clock() - began > _LONG_SECONDS
            if not watch.left and (long or self._is_final(size, gradients)):
                return _Outcome(result=result, returned=True, final=True)
            return self._left(_Outcome() if watch.left else _Outcome(None, result, True), gradients)
        # Here only the error itself refers to the failed call.
        release_frames(ended)
        if watch.left or not isinstance(ended, Exception):
            return self._left(_Outcome(), gradients)
        self._clean(ended)
        changes = gradients.changes()
        if changes.written:
            raise OutOfMemory(_GRADIENTS, given=size) from ended
        changes.take_back()
        if watch.steps and self._settings.repeat:
            self._settled = False
            judged = min(watch.steps + 1, _LATEST_STEP)
            if judged > self._judged_step:
                self._judged_step = judged
                self._search.forget()
        return _Outcome(error=ended)

    def _call(self, size: int, overrides: dict[str, Any]) -> Any:
        effective, kwargs = self._settings.effective, self._kwargs | overrides
        if effective is not None:
            kwargs[_ACCUMULATE] = effective // size
        return self._target.call(size, self._args, kwargs)

    def _is_final(self, size: int, gradients: Gradients, to_come: int = 0) -> bool:
        """Record that a size fits; return whether the call continues as the last one."""
        if self._settled:
            return True
        held = _held_bytes(self._settings.device) if self._cpu is None else self._cpu.needed()
        self._search.fits(size, None if held is None else held + to_come, self._base)
        if self._search.next() is None:
            return True
        return not gradients.are_none and gradients.changes().written

    def _left(self, outcome: _Outcome, gradients: Gradients) -> _Outcome:
        """Undo a call that is not the last; keep a result that holds no memory."""
        changes = gradients.changes()
        keeps = not self._on_device and not changes.new
        changes.take_back()
        self._clean(None)
        return outcome if keeps else _Outcome()

    def _clean(self, error: Exception | None) -> None:
        try:
            clear(self._settings.device, collect=True, wait=True)
        except Exception as trouble:  # noqa: BLE001 - the next try or the error itself will show it
            log.debug("the cache could not be cleared", exc_info=True)
            if error is not None:
                error.add_note(f"mpskit could not clear the cache after this: {trouble!r}")

    def _failed(self, size: int, error: Exception) -> None:
        self._error, figures = error, figures_of(error)
        buffer = figures.kind == "buffer"
        device = self._settings.device or figures.backend or "cpu"
        largest = backend(device).max_buffer_bytes() if buffer else None
        share = share_that_fits(figures, self._base, largest)
        self._search.fails(size, share, limit=limit_of(figures), exact=buffer)

    def _give_up(self) -> Any:
        """Use the fallback if there is one, else raise the backend's error with an explanation."""
        fallback, size = self._settings.fallback, self._sizes[0]
        if fallback is not None:
            warnings.warn(
                f"not even a batch size of {size} fits on the device, so the CPU is used",
                DeviceFallbackWarning,
                stacklevel=_STACKLEVEL,
            )
            size, self._settled = self._sizes[-1], True
            outcome = self._attempt(size, device=fallback)
            if outcome.error is None:
                return outcome.result
            self._error = outcome.error
        why = "" if self._error is None else f"\n{explain_oom(self._error, gave_up=True)}"
        raise OutOfMemory(
            f"not even a batch size of {size} fits.{why}", given=size
        ) from self._error


def _live_bytes(device: DeviceLike | None) -> int:
    """Return the bytes of live tensors on the devices in use, which do not grow with a batch."""
    return sum(backend(one).allocated_bytes() or 0 for one in devices_in_use(device))


def _held_bytes(device: DeviceLike | None) -> int | None:
    """Return what the backend holds for this process; after a step, its peak need."""
    held = [backend(one).reserved_bytes() for one in devices_in_use(device)]
    return sum(size or 0 for size in held) if held and None not in held else None


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Some builtins have no signature: the batch size goes first.
        return {}


def _place(parameters: Mapping[str, inspect.Parameter]) -> int | None:
    """Return the batch size's position among the arguments; None for a keyword."""
    if _NAME not in parameters:
        # A method decorated in its class is not bound yet.
        return int(next(iter(parameters), "") in ("self", "cls"))
    by_keyword = parameters[_NAME].kind is inspect.Parameter.KEYWORD_ONLY
    return None if by_keyword else list(parameters).index(_NAME)


def _check_function(function: object) -> None:
    if not callable(function):
        raise ArgumentTypeError(
            f"fn must be a function, got {shown(function)}; decorate as @run_with_batch_size(64)",
            given=function,
        )
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(function) for kind in kinds):
        raise ArgumentTypeError(
            "fn runs only after it has returned if it is async or a generator: wrap the part "
            "that computes",
            given=function,
        )


def _sizes(start: Any, settings: _Settings) -> Sequence[int]:
    """Return the sizes that may be tried, ascending; the last is ``start``."""
    least, effective = settings.least, settings.effective
    _check_size("start", start)
    _check_size("min", least)
    if start < least:
        raise ArgumentError(f"start={start} is below min={least}", given=start)
    if effective is None:
        return range(least, start + 1)
    if effective % start:
        raise ArgumentError(
            f"start={start} does not divide effective={effective}: a step needs a whole "
            "number of batches",
            given=start,
        )
    return [size for size in sizes_dividing(effective) if least <= size <= start]


def _check_size(name: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise ArgumentTypeError(
            f"{name} must be a batch size such as 64, got {shown(size)}:  "
            "run_with_batch_size(fn, 64) or @run_with_batch_size(64)",
            given=size,
        )
    if size < 1:
        raise ArgumentError(f"{name} must be a batch size from 1, got {shown(size)}", given=size)
    if size > sys.maxsize:
        raise ArgumentError(f"{name} is more than any batch has: {shown(size)}", given=size)


def _checked_fallback(fallback: Any) -> Literal["cpu"] | None:
    if fallback not in (None, "cpu"):
        raise ArgumentError(
            f"fallback must be 'cpu' or None, got {shown(fallback)}", given=fallback
        )
    return "cpu" if fallback else None
