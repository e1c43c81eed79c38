"""Storages by the address of the C++ storage, each for exactly as long as its memory lives.

Torch keeps one Python object for a C++ storage while the C++ one lives, so a weak reference to it
fires exactly when the memory goes, also when only a view or the autograd graph still held it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["LiveStorages", "StorageRef"]


class StorageRef(weakref.ref[Any]):
    """Knows a storage's address, and a number of its owner's, such as a block (or None)."""

    __slots__ = ("entry", "key")
    key: int
    entry: int | None


class LiveStorages(dict[int, StorageRef]):
    """The living storages among those added; hot paths ask ``address in storages`` directly.

    Args:
        freed: called with the reference of each storage that dies, on whatever thread that is.
    """

    def __init__(self, freed: Callable[[StorageRef], None]) -> None:
        super().__init__()
        self._freed = freed

    def add(self, storage: Any, entry: int | None) -> None:
        """Watch a storage from now on; only a weak reference to it is kept."""
        reference = StorageRef(storage, self._drop)
        reference.key = key = storage._cdata
        reference.entry = entry
        self[key] = reference

    def _drop(self, reference: weakref.ref[Any]) -> None:
        assert isinstance(reference, StorageRef)  # noqa: S101 - no other has this callback
        if self.get(reference.key) is reference:  # else the address is another storage's by now
            del self[reference.key]
            self._freed(reference)
