"""Tracks live storages by the address of the C++ storage, for exactly as long as each lives.

Torch keeps one Python object for a C++ storage while the C++ one lives, so a weak reference to it
fires exactly when the memory is freed, even if only a view or the autograd graph held it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["LiveStorages", "StorageRef"]


class StorageRef(weakref.ref[Any]):
    """A weak reference with the storage's address and an optional number, such as a block."""

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
