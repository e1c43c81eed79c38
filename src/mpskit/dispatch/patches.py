"""Monkey patches that are always undone, newest first, even after an interrupt.

Three kinds. ``set`` and ``item`` hold for the whole process. ``bind`` holds for one thread: the
attribute becomes a function that checks the calling thread, and every other thread gets the
original. ``share`` is for a change of the whole process that several threads need at once: the
first makes it, the last one undoes it.

Every step of undoing is registered before its change is made and may run twice, so that an
interrupt at any line leaves nothing changed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, MutableMapping
from threading import get_ident
from typing import Any, Self, TypeVar

from mpskit._base.locks import locked
from mpskit.errors import SimulationError

__all__ = ["Patches", "in_place"]

_MISSING = object()
_LOCK = threading.RLock()

Undo = Callable[[], object]
Result = TypeVar("Result")


class Patches:
    """A stack of changes; ``undo()``, or leaving a ``with`` block, takes all of them back."""

    def __init__(self) -> None:
        self._undo: list[Undo] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    @classmethod
    def around(cls, body: Callable[[Self], Result]) -> Result:
        """Return what ``body`` returns, with its changes undone, wherever an interrupt comes."""
        patches = cls()
        try:
            with patches:
                return body(patches)
        finally:
            patches.undo()  # where the interrupt came before the first line of undoing

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class; a name it did not have goes away again.

        Raises:
            SimulationError: a thread has replaced that function for itself: it is being traced.
        """
        self.derive(owner, name, lambda _: value)

    @locked(_LOCK)
    def derive(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """As ``set``, to what ``make`` returns for the value that is there."""
        slot = _slot(owner, name)
        if slot.bound:
            raise SimulationError(
                f"a model is being traced on {_names(slot.bound)}, and a simulated Mac would "
                "change torch below it: enter it before, or after the estimate has ended",
                given=name,
            )
        layer = [make(getattr(owner, name, None))]
        self._undo.append(functools.partial(slot.drop, layer))
        slot.layers = (*slot.layers, layer)
        slot.show()

    @locked(_LOCK)
    def bind(self, owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        """Replace a function on this thread only.

        Args:
            owner: the module or class that has it.
            name: its name there.
            make: gets the function to call in its place, and returns the replacement.
        """
        slot, thread = _slot(owner, name), get_ident()
        entries = slot.bound.get(thread, ())
        entry = [make(entries[-1][0] if entries else slot.call_below)]
        self._undo.append(functools.partial(slot.drop, entry))
        slot.bound = {**slot.bound, thread: (*entries, entry)}
        slot.show()

    def item(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set a key of a mapping (``os.environ`` say); a key it did not have goes away again."""
        before = mapping.get(key, _MISSING)
        if before is _MISSING:
            self._undo.append(lambda: mapping.pop(key, None))
        else:
            self._undo.append(lambda: mapping.__setitem__(key, before))
        mapping[key] = value

    @locked(_LOCK)
    def share(self, change: Callable[[Patches], None]) -> None:
        """Make a change of the whole process unless another holder has: the last one undoes it.

        Args:
            change: a module's function; it registers how it is undone.
        """
        held = _SHARED.setdefault(change, _Shared())
        holder = object()
        self._undo.append(functools.partial(held.release, holder))
        held.holders.add(holder)
        if not held.made:
            held.made = True
            change(held.patches)

    def on_exit(self, callback: Undo) -> None:
        """Call something when this point of the stack is undone."""
        self._undo.append(callback)

    def undo(self) -> None:
        """Take back every change, newest first.

        Raises:
            BaseException: the first error of an undo step, after all of them have run.
        """
        failed: list[BaseException] = []
        try:
            while self._undo:
                _run(self._undo[-1], failed)
                self._undo.pop()
        finally:  # an interrupt between two steps
            if self._undo:
                self.undo()
        if failed:
            raise failed[0]


def in_place(function: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    """Return what ``bind`` takes for a replacement that never calls the original."""
    return lambda _: function


def _run(step: Undo, failed: list[BaseException]) -> None:
    """Run a step, and again after an interrupt, which may have cut it short."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 - the other steps must still run
        failed.append(error)
    except BaseException as error:  # noqa: BLE001 - raised once all steps have run
        failed.append(error)
        step()


_Entry = list[Any]  # one value of an attribute; entries are told apart by identity


class _Slot:
    """One changed attribute: what it was, what is there for all, and what is there by thread."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.own = vars(owner).get(name, _MISSING)
        self.original: Any = getattr(owner, name, None)
        self.layers: tuple[_Entry, ...] = ()
        self.bound: dict[int, tuple[_Entry, ...]] = {}
        self.by_thread = self._by_thread()

    def call_below(self, *args: Any, **kwargs: Any) -> Any:
        """Call what a thread without a binding sees."""
        return (self.layers[-1][0] if self.layers else self.original)(*args, **kwargs)

    @locked(_LOCK)
    def drop(self, entry: _Entry) -> None:
        """Take one value away, wherever it stands; nothing where it is gone already."""
        key = (id(self.owner), self.name)
        if _SLOTS.get(key) is not self:
            return
        self.layers = tuple(other for other in self.layers if other is not entry)
        left = {t: tuple(e for e in own if e is not entry) for t, own in self.bound.items()}
        self.bound = {thread: own for thread, own in left.items() if own}
        self.show()
        if not (self.layers or self.bound):
            del _SLOTS[key]

    def show(self) -> None:
        """Set the attribute to its present value."""
        if self.bound:
            setattr(self.owner, self.name, self.by_thread)
        elif self.layers:
            setattr(self.owner, self.name, self.layers[-1][0])
        elif self.own is not _MISSING:
            setattr(self.owner, self.name, self.own)
        elif self.name in vars(self.owner):
            delattr(self.owner, self.name)

    def _by_thread(self) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            entries = self.bound.get(get_ident())
            return (entries[-1][0] if entries else self.call_below)(*args, **kwargs)

        if callable(self.original):
            functools.update_wrapper(call, self.original)
        return staticmethod(call) if _is_static(self.owner, self.name) else call


class _Shared:
    """A change of the whole process, and who needs it."""

    def __init__(self) -> None:
        self.patches = Patches()
        self.holders: set[object] = set()
        self.made = False

    @locked(_LOCK)
    def release(self, holder: object) -> None:
        """Undo the change when the last holder is gone."""
        self.holders.discard(holder)
        if not self.holders:
            self.patches.undo()
            self.made = False


_SLOTS: dict[tuple[int, str], _Slot] = {}
_SHARED: dict[Callable[[Patches], None], _Shared] = {}


def _slot(owner: Any, name: str) -> _Slot:
    key = (id(owner), name)
    found = _SLOTS.get(key)
    if found is None or not (found.layers or found.bound):  # left by an interrupt
        found = _SLOTS[key] = _Slot(owner, name)
    return found


def _is_static(owner: Any, name: str) -> bool:
    holders = (vars(cls)[name] for cls in getattr(owner, "__mro__", ()) if name in vars(cls))
    return isinstance(next(holders, None), staticmethod)


def _names(idents: dict[int, Any]) -> str:
    return " and ".join(t.name for t in threading.enumerate() if t.ident in idents) or "a thread"
