"""Recognises out-of-memory errors and parses their figures."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from mpskit._base.arguments import shown
from mpskit._base.sizes import GIB, MIB, format_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentTypeError
from mpskit.memory.oom_texts import OomText, find_sizes, recognise

__all__ = ["OomFigures", "figures_of", "is_oom", "parse_oom", "text_of"]

# No process has 1 PiB: a larger figure is a counter that wrapped around.
_IMPOSSIBLE = MIB * GIB


class OomFigures(Value):
    """The figures of an out-of-memory message, in bytes; None for those it lacks.

    Attributes:
        backend: ``mps``, ``cuda``, ``rocm``, ``xpu``, ``npu``, ``cpu``, or ``gpu`` if the message
            does not say which; None if it is not about memory.
        kind: what refused: ``limit`` (the framework's allocator), ``buffer`` (one buffer is larger
            than the device allows), ``driver`` (the driver or a library), ``host`` (the computer),
            ``shm`` (shared memory) or ``killed`` (the system ended the process, mostly for lack of
            memory).
        allocated: held by torch. MPS: whole heaps, cache included; CUDA and others: live tensors.
        other: MPS only: what Metal holds for this process besides torch's heaps.
        max_allowed: the limit. CUDA and others: the cap if there is one, else the device's memory.
        requested: the allocation that failed.
        pool: MPS only: ``private`` or ``shared``.
        free: CUDA and others: free on the device, all processes counted.
        cached: CUDA and others: held by torch's allocator without a tensor in it.
        notes: printed figures that cannot be true.
    """

    backend: str | None = None
    kind: str | None = None
    allocated: int | None = None
    other: int | None = None
    max_allowed: int | None = None
    requested: int | None = None
    pool: str | None = None
    free: int | None = None
    cached: int | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ("requested", "allocated", "other", "cached", "free", "max_allowed")
        sizes = [(name.replace("_", " "), getattr(self, name)) for name in names]
        parts = [f"{name} {format_bytes(size)}" for name, size in sizes if size is not None]
        pool = [f"{self.pool} pool"] if self.pool else []
        return f"{self.backend or 'unknown'}: {', '.join([*parts, *pool]) or 'no figures'}"


def is_oom(exc: BaseException | str) -> bool:
    """Return whether an exception, or its message, is an out-of-memory error of any backend.

    That is a ``MemoryError`` (``mpskit.OutOfMemory`` and numpy's too), ``torch.OutOfMemoryError``,
    an ``OSError`` with ENOMEM, or a ``RuntimeError`` with one of the texts of
    ``data/oom_texts.toml``: MPS has no type of its own. Some texts come with other types, such as
    tensorflow's ``ResourceExhaustedError``. In an exception group, every member must be one. Causes
    and contexts are ignored: only the raised exception counts. A process killed by the system does
    not count, because the kill may have another reason; :func:`mpskit.explain_oom` takes it.

    Raises:
        ArgumentTypeError: ``exc`` is neither.
    """
    if isinstance(exc, str):
        return _is_sure(recognise(exc))
    if not isinstance(exc, BaseException):
        raise ArgumentTypeError(
            f"is_oom() takes an exception or a text, not {shown(exc)}", given=exc
        )
    return all(_is_one(member) for member in _members(exc))


def _members(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of nested groups, without the groups themselves."""
    waiting, seen = [exc], set[int]()
    while waiting:
        member = waiting.pop()
        if not isinstance(member, BaseExceptionGroup):
            yield member
        elif id(member) not in seen:
            seen.add(id(member))
            waiting += reversed(member.exceptions)


def _is_one(exc: BaseException) -> bool:
    if isinstance(exc, OSError):
        return exc.errno == errno.ENOMEM
    if isinstance(exc, MemoryError) or _is_torch_type(exc):
        return True
    if not isinstance(exc, Exception):
        return False
    row = recognise(text_of(exc))
    names = {kind.__name__ for kind in type(exc).__mro__}
    told = row is not None and ("RuntimeError" in names or not names.isdisjoint(row.types))
    return told and _is_sure(row)


def _is_sure(row: OomText | None) -> bool:
    return row is not None and row.kind != "killed"


def _is_torch_type(exc: BaseException) -> bool:
    """Return whether it is ``torch.OutOfMemoryError`` (``torch.cuda``'s before 2.5); no import."""
    return any(
        kind.__name__ == "OutOfMemoryError" and str(kind.__module__).partition(".")[0] == "torch"
        for kind in type(exc).__mro__
    )


def text_of(exc: BaseException) -> str:
    """Return an exception's message; empty if its ``__str__`` fails."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error it belongs to
        return ""


def parse_oom(text: str | BaseException) -> OomFigures:
    """Return the figures of an out-of-memory text, of a log that contains one, or of an exception.

    ``GB`` and ``GiB`` are both 2**30, as they are in torch. If the text is not about memory, every
    figure is None. A counter that wrapped around (``other allocations: 67108914.49 GiB`` has been
    seen on MPS) is None too, and is listed in ``notes``.

    >>> figures = parse_oom("MPS backend out of memory (MPS allocated: 8.89 GB, other allocations: "
    ...     "172.98 MB, max allowed: 9.07 GB). Tried to allocate 6.25 MB on private pool.")
    >>> figures.requested, figures.pool
    (6553600, 'private')

    Raises:
        ArgumentTypeError: ``text`` is neither.
    """
    if isinstance(text, BaseException):
        return figures_of(text)
    if not isinstance(text, str):
        raise ArgumentTypeError(
            f"parse_oom() takes a text or an exception, not {shown(text)}", given=text
        )
    row = recognise(text)
    if row is None:
        return OomFigures()
    sizes = find_sizes(text)
    wrapped = [name for name in ("allocated", "other", "max_allowed") if _wrapped(sizes, name)]
    notes = [
        f"{name.replace('_', ' ')} was printed as {format_bytes(sizes.pop(name))}: a counter that "
        "wrapped around, not memory"
        for name in wrapped
    ]
    reserved = sizes.pop("reserved", None)
    if reserved is not None and "allocated" in sizes:
        sizes.setdefault("cached", max(0, reserved - sizes["allocated"]))
    return OomFigures(
        backend=row.backend, kind=row.kind, pool=_pool(text), notes=tuple(notes), **sizes
    )


def _wrapped(sizes: dict[str, int], name: str) -> bool:
    return sizes.get(name, 0) >= _IMPOSSIBLE


def _pool(text: str) -> str | None:
    return next((pool for pool in ("private", "shared") if f"on {pool} pool" in text), None)


def figures_of(exc: BaseException) -> OomFigures:
    """Return the figures of an error; for an ``OutOfMemory``, those of the backend's error.

    For a group, they are those of its first member that has any.

    Raises:
        ArgumentTypeError: ``exc`` is not an exception.
    """
    if not isinstance(exc, BaseException):
        raise ArgumentTypeError(f"figures_of() takes an exception, not {shown(exc)}", given=exc)
    figures = OomFigures()
    for member in _members(exc):
        cause = member.__cause__
        wrapped = isinstance(member, MemoryError) and cause is not None and is_oom(cause)
        found = parse_oom(text_of(cause if wrapped and cause is not None else member))
        figures = figures if figures.backend is not None else found
    return figures
