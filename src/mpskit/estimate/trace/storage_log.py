"""Every storage that lived during the traced steps, in the order of allocation and freeing.

Storages, not tensors: views share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpskit.dispatch.storage_lifetime import LiveStorages, StorageRef

if TYPE_CHECKING:
    import torch

    from mpskit.estimate.trace.user_line import Line

__all__ = ["Record", "StorageLog", "Where"]

# An allocator rounds sizes, so that the peak can be a little below the most that was asked for.
_NEAR_PEAK = 0.9


@dataclass(slots=True)
class Where:
    """Where the step is at this moment; one object, changed in place.

    ``failed`` is the innermost module that an exception left; ``locate`` answers for the module
    in a backward pass, ``line`` for the user's own line.
    """

    phase: str = "setup"
    step: int = -1
    module: str = ""
    op: str = ""
    locate: Callable[[], str] | None = None
    line: Callable[[], Line | None] | None = None
    failed: str | None = None

    def path(self) -> str:
        """Return the module; in a backward pass the one whose forward is undone."""
        return self.module if self.locate is None else self.locate()


@dataclass(slots=True)
class Record:
    """One storage: its size, what it turned out to be, and where it was allocated.

    ``margin`` is how much larger it can be, where the size is not known for sure.
    """

    size: int
    kind: str | None
    op: str
    module: str
    phase: str
    step: int
    line: Line | None = None
    margin: int = 0


@dataclass
class StorageLog:
    """Allocation events: ``number`` for an allocation of that record, ``~number`` for its end.

    ``unknown`` holds the keys of living storages with memory whose values are no longer true;
    ``numbers`` those of storages without memory that hold one number everywhere.
    """

    where: Where = field(default_factory=Where)
    records: list[Record] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    unknown: set[int] = field(default_factory=set)
    numbers: dict[int, bool | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._alive = LiveStorages(self._freed)
        self._live = self._most = 0

    def add(
        self, storage: torch.UntypedStorage, kind: str | None = None, *, size: int | None = None
    ) -> None:
        """Record a storage as allocated now, unless it is already known to be alive.

        Args:
            storage: the storage; only a weak reference to it is kept.
            kind: what it is, where that is known already.
            size: what to charge for it, where that is not its own size.
        """
        if storage._cdata not in self._alive:
            number = self._record(storage.nbytes() if size is None else size, kind)
            self._alive.add(storage, number)

    def workspace(self, size: int, high: int = 0) -> None:
        """Record memory that an operator takes and gives back before it returns.

        Args:
            size: how much that is likely to be.
            high: how much it can be at most, where that is more.
        """
        if max(size, high) > 0:
            number = self._record(size, None)
            self.records[number].margin = max(high - size, 0)
            self.events.append(~number)
            self._live -= size

    def charge(self, storage: torch.UntypedStorage, size: int) -> None:
        """Charge another size for a living storage, from its allocation on."""
        number = self.number(storage)
        if number is not None:
            self._live += size - self.records[number].size
            self.records[number].size = size

    def resize(self, storage: torch.UntypedStorage, size: int, kind: str) -> None:
        """Record a living storage as freed, and as allocated again with another size."""
        reference = self._alive.get(storage._cdata)
        if reference is None or reference.entry is None:
            return
        self.records[reference.entry].kind = kind
        self.events.append(~reference.entry)
        self._live -= self.records[reference.entry].size
        reference.entry = self._record(size, kind)

    def classify(self, storage: torch.UntypedStorage, kind: str) -> None:
        """Say what a living storage is; the first answer other than an activation stands."""
        number = self.number(storage)
        if number is not None and self.records[number].kind in {None, "activations"}:
            self.records[number].kind = kind

    def number(self, storage: torch.UntypedStorage) -> int | None:
        """Return which record a living storage has."""
        reference = self._alive.get(storage._cdata)
        return None if reference is None else reference.entry

    def keep_activations(self) -> None:
        """Take what the forward pass allocated and still lives for saved activations."""
        for number in (reference.entry for reference in self._alive.values()):
            if number is None:
                continue
            record = self.records[number]
            if record.kind is None and record.phase == "forward":
                record.kind = "activations"

    def close(self) -> None:
        """Stop watching: what is freed from now on is no event."""
        self._alive.clear()

    def _record(self, size: int, kind: str | None) -> int:
        where = self.where
        number = len(self.records)
        self._live += size
        self._most = max(self._most, self._live)
        # A backward pass is searched for lines only where it may reach the peak.
        seen = where.locate is None or self._live >= _NEAR_PEAK * self._most
        line = where.line() if seen and where.line is not None else None
        self.records.append(
            Record(size, kind, where.op, where.path(), where.phase, where.step, line)
        )
        self.events.append(number)
        return number

    def _freed(self, reference: StorageRef) -> None:
        self.unknown.discard(reference.key)  # the address may be another storage's next
        self.numbers.pop(reference.key, None)
        if reference.entry is not None:
            self.events.append(~reference.entry)
            self._live -= self.records[reference.entry].size
