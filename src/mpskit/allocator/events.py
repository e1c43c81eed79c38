"""The language between whoever allocates and the models: events, the model's face, a replay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentError

__all__ = ["AllocatorModel", "Event", "Replay", "replay"]


class Event(NamedTuple):
    """One allocation or release, in time order.

    ``id`` names the storage (any number, used again only after its release), ``size`` is its
    bytes as requested; the size of a release is not looked at.
    """

    kind: Literal["alloc", "free"]
    id: int
    size: int


class AllocatorModel(Protocol):
    """What every model of an allocator answers. All figures are bytes; no model is thread-safe."""

    def allocate(self, size: int) -> int:
        """Take ``size`` bytes and return the block's number.

        Raises:
            AllocatorLimitError: the allocator's limit is reached.
            BufferTooLargeError: no single buffer may be that large (MPS).
        """
        ...

    def free(self, block: int) -> None:
        """Give a block back to the allocator's cache."""
        ...

    def empty_cache(self) -> None:
        """Give back to the driver what holds no live block."""
        ...

    def reset_peaks(self) -> None:
        """Start both peaks again from what is held now."""
        ...

    @property
    def live_bytes(self) -> int:
        """Bytes of blocks in use, as the backend's ``memory_allocated`` counts them."""
        ...

    @property
    def heap_bytes(self) -> int:
        """Bytes that the allocator holds from the driver: ``memory_reserved``."""
        ...

    @property
    def driver_bytes(self) -> int:
        """Bytes that the driver counts for the process: heaps and what is beside them."""
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
    """What a list of events came to on one allocator.

    ``timeline`` has one pair (live bytes, driver bytes) after each event.
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
    """Run events through a model and return the peaks.

    Args:
        events: ``(kind, id, size)`` in time order.
        model: a model, usually a fresh one; it keeps what the events left allocated.
        timeline: whether to keep the pair of figures after each event (costs memory).

    Raises:
        ArgumentError: an event of another kind, a release of an unknown id, or an id that is
            allocated twice.
        AllocatorLimitError: the model has a limit and the events go over it.
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
