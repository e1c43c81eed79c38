"""A stack of changes to other people's objects, undone in reverse whatever happened between."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

__all__ = ["Patches"]

_MISSING = object()


class Patches:
    """Every change made while a simulation is on; ``undo()`` takes all of them back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class; a name it did not have goes away again."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, value)
        if before is _MISSING:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, before))

    def item(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set a key of a mapping (``os.environ`` say); a key it did not have goes away again."""
        before = mapping.get(key, _MISSING)
        mapping[key] = value
        if before is _MISSING:
            self._undo.append(lambda: mapping.pop(key, None))
        else:
            self._undo.append(lambda: mapping.__setitem__(key, before))

    def on_exit(self, callback: Callable[[], object]) -> None:
        """Call something when this point of the stack is undone."""
        self._undo.append(callback)

    def undo(self) -> None:
        """Take back every change, newest first.

        Raises:
            BaseException: the first error of an undo step, after all of them have run.
        """
        failed: list[BaseException] = []
        while self._undo:
            try:
                self._undo.pop()()
            except BaseException as error:  # noqa: BLE001 - the other steps must still run
                failed.append(error)
        if failed:
            raise failed[0]
