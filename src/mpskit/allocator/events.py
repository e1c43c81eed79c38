"""Allocation events, the interface of an allocator model, and replaying events on a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentError

__all__ = ["AllocatorModel", "Event", "Replay", "replay"]


class Event(NamedTuple):
    """The allocation or the release of one storage.

    ``id`` identifies the storage and may be reused after its release; ``size`` is the requested
    size in bytes, and is ignored for a release.
    """

    kind: Literal["alloc", "free"]
    id: int
    size: int


class AllocatorModel(Protocol):
    """The interface of every allocator model. Sizes are in bytes; no model is thread-safe."""

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return the block's number.

        Raises:
            AllocatorLimitError: the allocator's limit is reached.
            BufferTooLargeError: ``size`` reaches the largest buffer that Metal makes (MPS).
        """
        ...

    def free(self, block: int) -> None:
        """Free a block; the allocator keeps its memory in the cache."""
        ...

    def empty_cache(self) -> None:
        """Return all memory without a live block to the driver."""
        ...

    def reset_peaks(self) -> None:
        """Reset both peaks to the current figures."""
        ...

    @property
    def live_bytes(self) -> int:
        """Bytes of blocks in use, as the backend's ``memory_allocated`` counts them."""
        ...

    @property
    def heap_bytes(self) -> int:
        """Bytes that the allocator has reserved from the driver: ``memory_reserved``."""
        ...

    @property
    def driver_bytes(self) -> int:
        """Bytes that the driver counts for the process: the heaps and all other allocations."""
        ...

    @property
    def peak_live_bytes(self) -> int:
        """The largest ``live_bytes`` since the last :meth:`reset_peaks`."""
        ...

    @property
    def peak_driver_bytes(self) -> int:
        """The largest ``driver_bytes`` since the last :meth:`reset_peaks`."""
        ...


class Replay(Value):
    """The peaks that a sequence of events reaches on one allocator, in bytes.

    ``timeline`` has a pair (live bytes, driver bytes) after each event.
    """

    peak_live_bytes: int
    peak_driver_bytes: int
    timeline: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return (
            f"peak {format_bytes(self.peak_live_bytes)} live, "
            f"{format_bytes(self.peak_driver_bytes)} held from the driver"
        )


def replay(
    events: Iterable[Event | tuple[str, int, int]],
    model: AllocatorModel,
    *,
    timeline: bool = True,
) -> Replay:
    """Replay events on a model and return the peaks.

    Args:
        events: ``(kind, id, size)`` in time order.
        model: a model, usually a fresh one; blocks that the events do not free stay allocated.
        timeline: whether to keep the pair of figures after each event, which costs memory.

    Raises:
        ArgumentError: an event of another kind, a release of an unknown id, or an id that is
            allocated twice.
        AllocatorLimitError: the events exceed the model's limit.
    """
    blocks: dict[int, int] = {}
    points: list[tuple[int, int]] = []
    for kind, identity, size in events:
        if kind == "alloc" and identity not in blocks:
            blocks[identity] = model.allocate(size)
        elif kind == "free" and identity in blocks:
            model.free(blocks.pop(identity))
        else:
            raise ArgumentError(
                f"event {kind!r} of id {identity}: an event is 'alloc' of a new id or 'free' "
                "of an allocated one",
                given=(kind, identity, size),
            )
        if timeline:
            points.append((model.live_bytes, model.driver_bytes))
    return Replay(
        peak_live_bytes=model.peak_live_bytes,
        peak_driver_bytes=model.peak_driver_bytes,
        timeline=tuple(points),
    )
