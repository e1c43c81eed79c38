"""Caps what this process may use of a device, so that a job fails before the machine swaps.

MPS: a ratio of the recommended working set; PyTorch's default of 1.7 is above the physical memory
of every Mac. CUDA and XPU: a share of the device. CPU: the soft ``RLIMIT_DATA``, where there is one
that the kernel enforces.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from pydantic import PrivateAttr

from mpskit._base.arguments import shown
from mpskit._base.locks import run_locked
from mpskit._base.sizes import format_bytes
from mpskit._base.state import remembered
from mpskit._base.values import Value
from mpskit.allocator.watermarks import HIGHEST, limit_bytes, read_watermarks
from mpskit.backends.kinds import MemoryClass
from mpskit.errors import ArgumentError, DeviceUnavailableError
from mpskit.memory.amounts import Amount, amount_bytes
from mpskit.memory.working_set import rule_of
from mpskit.system.limits import can_map, data_limit, set_data_limit
from mpskit.system.memory import status_bytes

if TYPE_CHECKING:
    from mpskit.backends.memory import Backend, DeviceLike

__all__ = ["MemoryLimit", "high_watermark", "limit_memory"]

# The caps set here, by device: MPS never reports the one in force, CUDA only in newer torch.
_caps: dict[str, float] = remembered({})
_lock = threading.RLock()
_NO_COLLECTION = (
    "garbage collection starts at {:g} x the working set, above this cap, so never: torch has no "
    "Python call to lower it; configure_environment(memory_limit=...) does, before MPS is used"
)

Kind: TypeAlias = Literal["working-set", "device", "data"]


class _Before:
    """The value that a change goes back to."""

    def __init__(self, value: Any) -> None:
        self.value = value


# The changes in force, by device, in the order in which they were made.
_in_force: dict[str, tuple[_Before, ...]] = remembered({})


class _Change:
    """A cap to set and undo once; garbage collection of it undoes it too.

    An interrupt may come between any two lines, so the undo is recorded before the change, and
    undoing twice is harmless. A change that is undone while a later one is in force, as by threads
    whose blocks overlap, leaves that one and hands it the value to go back to.
    """

    on = False
    # Set in a `with`: if an interrupt ends even __exit__, dropping the last reference undoes it.
    armed = False

    def __init__(self, device: str, put: Callable[[Any], None], value: Any, before: Any) -> None:
        self._device, self._put, self._value = device, put, value
        self._before = _Before(before)

    def make(self) -> None:
        self.on = True
        _in_force[self._device] = (*_in_force.get(self._device, ()), self._before)
        self._put(self._value)

    def undo(self) -> None:
        if not self.on:
            return
        later = next((b for a, b in itertools.pairwise(self._all()) if a is self._before), None)
        if later is None:
            self._put(self._before.value)
        else:
            later.value = self._before.value
        self.forget()

    def forget(self) -> None:
        """Leave the cap as it is."""
        _in_force[self._device] = tuple(one for one in self._all() if one is not self._before)
        self.on = False

    def _all(self) -> tuple[_Before, ...]:
        return _in_force.get(self._device, ())

    def __del__(self) -> None:
        with suppress(Exception):
            if self.armed:
                self.undo()
            elif self.on:
                self.forget()


class MemoryLimit(Value):
    """A cap in force; leaving its ``with`` block, or :meth:`restore`, restores the previous one.

    Attributes:
        device: the device it applies to.
        limit_bytes: the cap in bytes.
        kind: what it is a cap on: ``working-set`` (MPS), ``device`` (CUDA, XPU) or ``data``
            (the process's private writable memory, on the CPU).
        ratio: the cap as the backend takes it; None on the CPU.
        previous_bytes: the cap before; None where there was none.
        notes: its limitations.
    """

    device: str
    limit_bytes: int
    kind: Kind
    ratio: float | None = None
    previous_bytes: int | None = None
    notes: tuple[str, ...] = ()
    _change: _Change = PrivateAttr(default_factory=lambda: _Change("", lambda _: None, None, None))
    _entered: int = PrivateAttr(default=0)

    def __str__(self) -> str:
        before = "no limit" if self.previous_bytes is None else format_bytes(self.previous_bytes)
        ratio = "" if self.ratio is None else f" (ratio {self.ratio:.4f})"
        first = (
            f"{self.device} limited to {format_bytes(self.limit_bytes)}{ratio}, before: {before}"
        )
        return "\n".join([first, *(f"  note: {note}" for note in self.notes)])

    def restore(self) -> None:
        """Restore the previous cap; a second call does nothing."""
        try:
            run_locked(_lock, self._change.undo, None)
        except Exception:
            self._change.forget()
            raise
        except BaseException:
            # Interrupted, perhaps before the undo was complete.
            with suppress(Exception):
                run_locked(_lock, self._change.undo, None)
            raise

    def __enter__(self) -> Self:
        try:
            self._change.armed = True
            run_locked(_lock, functools.partial(self._count, 1), None)
            self._check_on()
        except BaseException:
            if self._entered <= 1:
                self.restore()
            raise
        return self

    def _check_on(self) -> None:
        if not self._change.on:
            raise ArgumentError(
                "this cap has been restored already: call limit_memory() again", given=self
            )

    def _count(self, by: int) -> None:
        self._entered += by

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            run_locked(_lock, functools.partial(self._count, -1), None)
            if not self._entered:
                self.restore()
        except Exception as trouble:
            if error is None:
                raise
            error.add_note(f"mpskit could not restore the memory cap after this: {trouble!r}")


def limit_memory(limit: Amount, device: DeviceLike | None = None) -> MemoryLimit:
    """Cap what this process may use of a device: at once, and until the end of a ``with`` block.

    On a Mac ``"80%"`` is 80% of the machine's RAM, translated into a ratio of the recommended
    working set (1.2 on 8 GiB with macOS 15, not 0.8). Allocations beyond the cap raise the
    backend's out-of-memory error, which :func:`mpskit.is_oom` recognises. The cap that was made
    last is in force; when all are restored, in any order, the first one's previous cap is back.

    On MPS torch has no Python call to set the low watermark, where garbage collection starts: with
    a cap below it (1.4 x recommended unless set) nothing is collected before the error, and a note
    says so. ``configure_environment(memory_limit=...)``, before MPS is used, lowers both.

    Args:
        limit: a size (``"12GiB"``, bytes as ``int``) or a share of the device's memory (``"80%"``
            or ``0.8``: the same thing).
        device: the device; None takes the one that :func:`mpskit.get_optimal_device`
            chooses. It is a first use of an accelerator.

    Returns:
        What was applied.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: the limit is zero, more than the device has, or cannot be understood.
        DeviceUnavailableError: the device cannot be capped (the CPU outside Linux).
    """
    from mpskit.backends.memory import as_device, backend
    from mpskit.device import get_optimal_device

    asked = backend(as_device(device) if device is not None else get_optimal_device().device)
    made: list[MemoryLimit] = []
    try:
        run_locked(_lock, lambda: _set(asked, limit, made), None)
        return made[0]
    except BaseException:
        # The cap failed, or an interrupt came before the caller had the means to undo it.
        for cap in made:
            with suppress(Exception):
                cap._change.undo()
        raise


def _set(asked: Backend, limit: Amount, made: list[MemoryLimit]) -> None:
    made.append(_RULES[asked.kind.memory](asked, limit))
    made[0]._change.make()
    if made[0].kind == "data" and can_map(made[0].limit_bytes):
        raise DeviceUnavailableError("this kernel does not enforce RLIMIT_DATA", given=limit)


def high_watermark() -> float:
    """Return the MPS ratio in force as far as known: the cap set here, else the variable's.

    0.0 is no limit. A cap set by ``torch.mps.set_per_process_memory_fraction`` itself is not seen.
    """
    return _caps.get("mps", read_watermarks(os.environ).high)


def _wanted(limit: Amount, whole: int | None, device: DeviceLike) -> int:
    """Return the limit in bytes, checked against the device's memory."""
    if whole is None:
        raise DeviceUnavailableError(
            f"{device} cannot be limited: it is not available here", given=str(device)
        )
    size = amount_bytes(limit, whole, "limit")
    if not 0 < size <= whole:
        raise ArgumentError(
            f"limit={shown(limit)} is not between 0 and the {format_bytes(whole)} of {device}",
            given=limit,
        )
    return size


def _limit_mps(asked: Backend, limit: Amount) -> MemoryLimit:
    from mpskit.host import detect_host

    host, recommended = detect_host(), asked.recommended_bytes()
    if recommended is None and (rule := rule_of(host)) is not None:
        recommended = rule.recommended_bytes
    size = _wanted(limit, host.memory_total_bytes if recommended else None, asked.device)
    base = recommended or size
    if size > HIGHEST * base:
        raise ArgumentError(
            f"limit={shown(limit)} is more than twice the working set of {format_bytes(base)}, the "
            "most that PyTorch takes",
            given=limit,
        )
    held = asked.reserved_bytes() or 0
    notes = (*_low_notes(size / base), *_full_notes(held, size))
    return _planned(asked, "working-set", size / base, base, high_watermark(), notes)


def _low_notes(ratio: float) -> tuple[str, ...]:
    low = read_watermarks(os.environ).low
    if not low or low <= ratio:
        return ()
    return (_NO_COLLECTION.format(low),)


def _full_notes(held: int, size: int) -> tuple[str, ...]:
    if held <= size:
        return ()
    return (f"{format_bytes(held)} are held already: every allocation fails until that falls",)


def _limit_share(asked: Backend, limit: Amount) -> MemoryLimit:
    """Cap CUDA, XPU and any backend with torch's per-process fraction."""
    total = asked.total_bytes()
    size = _wanted(limit, total, asked.device)
    before = asked.memory_fraction() or _caps.get(_key(asked), 1.0)
    notes = _full_notes(asked.reserved_bytes() or 0, size)
    return _planned(asked, "device", size / (total or size), total or size, before, notes)


def _planned(
    asked: Backend, kind: Kind, ratio: float, base: int, before: float, notes: tuple[str, ...]
) -> MemoryLimit:
    cap = MemoryLimit(
        device=str(asked.device),
        limit_bytes=limit_bytes(base, ratio),
        kind=kind,
        ratio=ratio,
        previous_bytes=limit_bytes(base, before) if before else None,
        notes=notes,
    )
    cap._change = _Change(_key(asked), functools.partial(_put, asked), ratio, before)
    return cap


def _put(asked: Backend, ratio: float) -> None:
    if not asked.set_memory_fraction(ratio):
        raise DeviceUnavailableError(
            f"{asked.device} cannot be limited: this torch has no cap for it",
            given=str(asked.device),
        )
    _caps[_key(asked)] = ratio


def _key(asked: Backend) -> str:
    return str(asked.device) if asked.kind.numbered else asked.kind.name


def _limit_cpu(asked: Backend, limit: Amount) -> MemoryLimit:
    """Lower the soft ``RLIMIT_DATA``; child processes inherit it."""
    from mpskit.host import detect_host

    if sys.platform != "linux":
        raise DeviceUnavailableError(
            "the CPU's memory can be limited on Linux only: other kernels do not enforce "
            "RLIMIT_DATA for what torch allocates",
            given=limit,
        )
    host = detect_host()
    size = _wanted(limit, host.memory_limit_bytes or host.memory_total_bytes, asked.device)
    previous = _soft_limit(size, limit)
    cap = MemoryLimit(
        device=str(asked.device),
        limit_bytes=size,
        kind="data",
        previous_bytes=previous,
        notes=(
            "counts all private writable memory the process has mapped, used or not",
            *_full_notes(_mapped(), size),
        ),
    )
    cap._change = _Change(_key(asked), set_data_limit, size, previous)
    return cap


_RULES: dict[MemoryClass, Callable[[Backend, Amount], MemoryLimit]] = {
    MemoryClass.HOST: _limit_cpu,
    MemoryClass.UNIFIED: _limit_mps,
    MemoryClass.OWN: _limit_share,
}


def _soft_limit(size: int, given: Amount) -> int | None:
    """Return the soft limit in force; refuse a new one above the hard limit."""
    previous, hard = data_limit()
    if hard is not None and size > hard:
        raise ArgumentError(
            f"limit={shown(given)} is above this process's hard limit of {format_bytes(hard)}",
            given=given,
        )
    return previous


def _mapped() -> int:
    """Return this process's private writable memory (``VmData``); 0 where unknown."""
    return status_bytes("VmData") or 0
