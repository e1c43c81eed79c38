"""Running out of memory: is this it, what do the figures say, and what to do about it."""

from __future__ import annotations

import errno

from mpskit._base.sizes import GIB, MIB, format_bytes
from mpskit._base.values import Value
from mpskit.backends.kinds import MemoryClass, kind_of
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.memory.oom_texts import find_sizes, recognise
from mpskit.system.process import MemoryUser, largest_users

__all__ = ["OomExplanation", "OomFigures", "explain_oom", "figures_of", "is_oom", "parse_oom"]

# No machine has 1 PiB for one process: a figure beyond it is a count that wrapped round.
_IMPOSSIBLE = MIB * GIB

_STEPS = (
    "Use a smaller batch: halve it, or let mpskit.run_with_batch_size() find one that fits.",
    "Accumulate gradients over more steps, so that the effective batch stays what it was.",
    "Shorten the sequences, or the images' sides: attention grows with the square of the length.",
    "Turn gradient checkpointing on: activations are computed again instead of kept.",
    "Train LoRA adapters instead of all weights: gradients and optimizer states all but vanish.",
    "Use a smaller model.",
    "Close other programs{users}.",
    "Restart this process (a notebook's kernel too), then the computer: what leaked comes back.",
    "Use a machine with more memory, or the cloud.",
)


class OomFigures(Value):
    """What an out-of-memory text says, in bytes; None for what it does not say.

    Attributes:
        backend: ``mps``, ``cuda``, ``rocm``, ``xpu``, ``npu`` or ``cpu``; None if the text does
            not tell of a lack of memory at all.
        kind: who refused: ``limit`` (torch's allocator), ``buffer`` (one buffer is larger than
            the device makes), ``driver`` (the driver or a library) or ``host`` (the computer).
        allocated: held by torch. MPS: whole heaps, so with what is cached; CUDA and others: live
            tensors.
        other: MPS only: what Metal holds for this process besides torch's heaps.
        max_allowed: the limit. CUDA and others: the cap if there is one, else the device's memory.
        requested: the allocation that failed.
        pool: MPS only: ``private`` or ``shared``.
        free: CUDA and others: free on the device, all processes counted.
        cached: CUDA and others: held by torch's allocator without a tensor in it.
        notes: figures that were printed and cannot be true.
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


class OomExplanation(Value):
    """An out-of-memory error in words.

    Attributes:
        summary: what happened, with the figures.
        holders: who holds the memory, one sentence each.
        steps: what to do, the cheapest first.
        notes: what is special about this one.
        figures: the figures themselves, in bytes.
        users: the largest other programs, which on unified memory take from the GPU too.
    """

    summary: str
    holders: tuple[str, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    figures: OomFigures
    users: tuple[MemoryUser, ...]

    def __str__(self) -> str:
        lines = [self.summary, *self.notes]
        if self.holders:
            lines += ["Who holds the memory:", *(f"  - {holder}" for holder in self.holders)]
        steps = [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, "What to do, in this order:", *steps])


def is_oom(exc: BaseException) -> bool:
    """Return whether an exception tells of a lack of memory, on any backend.

    That is a ``MemoryError`` (``mpskit.OutOfMemory`` and numpy's too), ``torch.OutOfMemoryError``,
    an ``OSError`` with ENOMEM, or a ``RuntimeError`` with one of the texts of
    ``data/oom_texts.toml``: MPS has no type of its own. Of an exception group, every member must
    be one. A cause or context is not looked at: what was raised is what counts.

    Raises:
        ArgumentTypeError: ``exc`` is not an exception.
    """
    if not isinstance(exc, BaseException):
        raise ArgumentTypeError(f"is_oom() takes an exception, not {exc!r}", given=exc)
    if isinstance(exc, BaseExceptionGroup):
        return all(is_oom(member) for member in exc.exceptions)
    if isinstance(exc, OSError):
        return exc.errno == errno.ENOMEM
    if isinstance(exc, MemoryError) or _is_torch_type(exc):
        return True
    return isinstance(exc, RuntimeError) and recognise(_text(exc)) is not None


def _is_torch_type(exc: BaseException) -> bool:
    """Tell ``torch.OutOfMemoryError`` (``torch.cuda``'s before 2.5) without importing torch."""
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(exc).__mro__
    )


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error it belongs to
        return ""


def parse_oom(text: str) -> OomFigures:
    """Return the figures of an out-of-memory text, or of a log that contains one.

    ``GB`` and ``GiB`` are both 2**30, as they are in torch. A text that tells of no lack of memory
    gives figures that are all None. A count that wrapped round (``other allocations: 67108914.49
    GiB`` has been seen on MPS) is None too, and stands in ``notes``.

    >>> figures = parse_oom("MPS backend out of memory (MPS allocated: 8.89 GB, other allocations: "
    ...     "172.98 MB, max allowed: 9.07 GB). Tried to allocate 6.25 MB on private pool.")
    >>> figures.requested, figures.pool
    (6553600, 'private')

    Raises:
        ArgumentTypeError: ``text`` is not a string.
    """
    if not isinstance(text, str):
        raise ArgumentTypeError(f"parse_oom() takes a text, not {text!r}", given=text)
    row = recognise(text)
    if row is None:
        return OomFigures()
    sizes = find_sizes(text)
    wrapped = [name for name in ("allocated", "other", "max_allowed") if _wrapped(sizes, name)]
    notes = [
        f"{name.replace('_', ' ')} was printed as {format_bytes(sizes.pop(name))}: a count that "
        "wrapped round, not memory"
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


def explain_oom(exc: BaseException | str) -> OomExplanation:
    """Return what an out-of-memory error means, who holds the memory, and what to do.

    Args:
        exc: the exception, or its text. Of an ``OutOfMemory`` the original is explained.

    Raises:
        ArgumentTypeError: it is neither.
        ArgumentError: it does not tell of a lack of memory.
    """
    figures = parse_oom(exc) if isinstance(exc, str) else figures_of(exc)
    if figures.backend is None:
        if isinstance(exc, str) or not is_oom(exc):
            raise ArgumentError(f"this is not about memory: {exc!r}", given=exc)
        figures = OomFigures(backend="cpu", kind="host")
    users = largest_users()
    return OomExplanation(
        summary=_summary(figures),
        holders=_holders(figures, users),
        steps=_steps(users),
        notes=_notes(figures),
        figures=figures,
        users=users,
    )


def figures_of(exc: BaseException) -> OomFigures:
    """Return the figures of an error; of an ``OutOfMemory`` those of what the backend raised.

    Raises:
        ArgumentTypeError: ``exc`` is not an exception.
    """
    if not isinstance(exc, BaseException):
        raise ArgumentTypeError(f"this is no exception: {exc!r}", given=exc)
    cause = exc.__cause__
    wrapped = isinstance(exc, MemoryError) and cause is not None and is_oom(cause)
    return parse_oom(_text(cause if wrapped and cause is not None else exc))


def _summary(figures: OomFigures) -> str:
    device = kind_of(figures.backend or "cpu").title
    wanted = "" if figures.requested is None else f" of {format_bytes(figures.requested)}"
    if figures.kind == "buffer":
        return f"{device} cannot make one buffer{wanted}: a single tensor is too large."
    if figures.kind == "host":
        return f"The computer has no memory left for an allocation{wanted} on the CPU."
    limit = figures.max_allowed
    held = "" if limit is None else f", and this process may hold {format_bytes(limit)} at most"
    return f"{device} is out of memory: an allocation{wanted} did not fit{held}."


def _holders(figures: OomFigures, users: tuple[MemoryUser, ...]) -> tuple[str, ...]:
    memory = kind_of(figures.backend or "cpu").memory
    unified = memory is MemoryClass.UNIFIED
    kept = "PyTorch's tensors and cache" if unified else "PyTorch's tensors"
    rows = (
        (kept, figures.allocated),
        ("Metal's own allocations for this process (graphs, libraries)", figures.other),
        ("PyTorch's cache, without a tensor in it", figures.cached),
        ("everything else on the device (contexts, libraries, other processes)", _rest(figures)),
    )
    lines = [f"{name}: {format_bytes(size)}" for name, size in rows if size is not None]
    if users and memory is not MemoryClass.OWN:
        lines.append(f"other programs, from the same memory: {_names(users)}")
    return tuple(lines)


def _rest(figures: OomFigures) -> int | None:
    """Return what is on a device with memory of its own besides torch's allocator."""
    parts = (figures.max_allowed, figures.free, figures.allocated, figures.cached)
    known = [part for part in parts if part is not None]
    rest = known[0] - sum(known[1:]) if len(known) == len(parts) else -1
    # Less than nothing: the text told a cap instead of the device's memory.
    return rest if rest >= 0 else None


def _names(users: tuple[MemoryUser, ...]) -> str:
    return ", ".join(str(user) for user in users)


def _steps(users: tuple[MemoryUser, ...]) -> tuple[str, ...]:
    named = f": {_names(users)}" if users else ""
    return tuple(step.format(users=named) for step in _STEPS)


def _notes(figures: OomFigures) -> tuple[str, ...]:
    notes = list(figures.notes)
    if figures.kind == "buffer":
        notes.append("Split that tensor: freeing other memory does not help.")
    if figures.allocated == 0 and figures.other == 0:
        notes.append(
            "Nothing was allocated yet: the GPU of a virtual machine or hosted runner cannot be "
            "used. No batch size helps; use the CPU (MPSKIT_DEVICE=cpu)."
        )
    if figures.backend == "mps" and figures.kind == "limit":
        notes.append(
            "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 is no cure: PyTorch's own limit is above the "
            "Mac's memory already, and without one macOS swaps or kills the process."
        )
    return tuple(notes)
