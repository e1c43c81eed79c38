"""The rehearsed machine's memory: it writes every event down and never refuses for good.

The events of one run are replayed on the allocator of any other machine.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from mpskit.allocator import (
    AllocatorLimitError,
    BufferTooLargeError,
    MpsAllocator,
    allocator_for,
)
from mpskit.allocator.watermarks import read_watermarks
from mpskit.host import HostKind, Machine
from mpskit.memory.budget import machine_budget
from mpskit.memory.working_set import recommended_bytes
from mpskit.rehearsal.result import MachineVerdict, Moment, Place, Verdict
from mpskit.simulation.memory import Memory

__all__ = ["Events", "Mark", "RehearsedMemory", "allocator_of", "timeline", "verdicts"]

# What tells a place cheaply: operator, module, phase, step, and where to look for the line.
Mark = tuple[Any, ...]
_MOMENTS = 400


@dataclass
class Events:
    """The events in order: ``n`` allocates record n, ``~n`` frees it.

    Attributes:
        order: the events.
        sizes: bytes that each record asked for.
        places: number of each record's mark.
        marks: the marks, each once.
        calls: event number -> what the script asked of the allocator then: an emptied cache
            (None) or another high watermark.
    """

    order: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    places: array[int] = field(default_factory=lambda: array("l"))
    marks: dict[Mark, int] = field(default_factory=dict)
    calls: dict[int, list[float | None]] = field(default_factory=dict)

    def allocated(self, size: int, mark: Mark) -> int:
        """Write an allocation down and return its record's number."""
        number = len(self.sizes)
        self.sizes.append(size)
        self.places.append(self.marks.setdefault(mark, len(self.marks)))
        self.order.append(number)
        return number

    def called(self, ratio: float | None) -> None:
        """Write down that the cache was emptied (None) or the high watermark set."""
        self.calls.setdefault(len(self.order), []).append(ratio)

    def mark(self, record: int) -> Mark:
        """Return what was noted of a record's place."""
        return list(self.marks)[self.places[record]]

    def play(self, model: MpsAllocator) -> Iterator[tuple[int, AllocatorLimitError | None]]:
        """Play the events on a model; yield each event's number after it.

        Where the model refuses, the error comes with the number, and the model refuses nothing
        from then on.
        """
        blocks: dict[int, int] = {}
        for index, event in enumerate(self.order):
            for ratio in self.calls.get(index, ()):
                _call(model, ratio)
            error = None
            if event < 0:
                model.free(blocks.pop(~event))
            else:
                try:
                    blocks[event] = model.allocate(self.sizes[event])
                except (AllocatorLimitError, BufferTooLargeError) as refused:
                    error = cast("AllocatorLimitError", refused)
                    model.lift_limits()
                    blocks[event] = model.allocate(self.sizes[event])
            yield index, error


def _call(model: MpsAllocator, ratio: float | None) -> None:
    if ratio is None:
        model.empty_cache()
    elif model.limit_bytes is not None:
        model.set_high_watermark(ratio)


class RehearsedMemory(Memory):
    """Memory whose events are kept.

    Attributes:
        events: of this run.
        mark: tells where the script is.
        refused: is told the error of each allocation that the Mac refuses; where it does not raise,
            the run goes on without a limit.
    """

    events: Events
    mark: Callable[[], Mark]
    refused: Callable[[Exception], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events = Events()
        self._blocks: dict[int, int] = {}
        self._open = False

    def charge(self, size: int) -> int | None:
        """Allocate and return the record's number; None where torch would ask for no buffer."""
        if not size:
            return None
        with self._lock:
            model = self.model
            if self._broken and not self._open:
                self._refuse(model, RuntimeError(self._broken_text(model, size)))
            try:
                block = model.allocate(size)
            except (AllocatorLimitError, BufferTooLargeError) as error:
                self._refuse(model, RuntimeError(str(error)))
                block = model.allocate(size)
            number = self.events.allocated(size, self.mark())
            self._blocks[number] = block
            return number

    def _refuse(self, model: MpsAllocator, error: Exception) -> None:
        self.refused(error)
        self._open = True
        model.lift_limits()

    def _settled(self, model: MpsAllocator) -> MpsAllocator:
        freed = self._freed
        while freed:
            number = freed.popleft()
            self.events.order.append(~number)
            model.free(self._blocks.pop(number))
        return model

    def _build(self) -> MpsAllocator:
        return cast("MpsAllocator", _Observed(super()._build(), self.events))


class _Observed:
    """A model that writes down what the script asks of it beside tensors."""

    def __init__(self, model: MpsAllocator, events: Events) -> None:
        self._model, self._events = model, events
        self.allocate, self.free = model.allocate, model.free

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def empty_cache(self) -> None:
        self._events.called(None)
        self._model.empty_cache()

    def set_high_watermark(self, ratio: float) -> None:
        self._model.set_high_watermark(ratio)
        self._events.called(ratio)


@dataclass
class _Played:
    peak: int
    driver: int
    largest: int
    refused: int | None = None


def verdicts(
    events: Events, machines: list[Machine], torch_version: str, place: Callable[[Mark], Place]
) -> tuple[MachineVerdict, ...]:
    """Replay the events on each machine's allocator.

    One replay without limits serves every machine whose limits it does not reach.
    """
    free = _play(events, allocator_for("mps", torch_version=torch_version))
    known: dict[tuple[Any, ...], _Played] = {}
    found: list[MachineVerdict] = []
    for machine in machines:
        model = allocator_of(machine, torch_version)
        limit = model.limit_bytes  # before a replay lifts it
        size = recommended_bytes(machine.ram_bytes, machine.macos)
        key = (size.recommended_bytes, size.max_buffer_bytes)
        if key not in known:
            clear = not events.calls and model.clear_of_limits(free.driver, free.largest)
            known[key] = free if clear else _play(events, model)
        played = known[key]
        if machine.kind is HostKind.MAC_VM and events.sizes:  # a hosted runner allocates nothing
            played = replace(played, refused=0)
        found.append(_verdict(machine, played, limit, events, place))
    return tuple(found)


def allocator_of(machine: Machine, torch_version: str) -> MpsAllocator:
    """Return a fresh allocator of a machine, with the watermarks that the variables set."""
    size = recommended_bytes(machine.ram_bytes, machine.macos)
    marks = read_watermarks(os.environ)
    return allocator_for(
        "mps",
        torch_version=torch_version,
        recommended_bytes=size.recommended_bytes,
        max_buffer_bytes=size.max_buffer_bytes,
        high=marks.high,
        low=marks.low,
    )


def _play(events: Events, model: Any) -> _Played:
    refusals = [index for index, error in events.play(model) if error is not None]
    refused = refusals[0] if refusals else None
    largest = max(events.sizes, default=0)
    return _Played(model.peak_live_bytes, model.peak_driver_bytes, largest, refused)


def _verdict(
    machine: Machine,
    played: _Played,
    limit: int | None,
    events: Events,
    place: Callable[[Mark], Place],
) -> MachineVerdict:
    usable = machine_budget(machine).usable_bytes
    refused = None if played.refused is None else events.order[played.refused]
    tight = usable is not None and played.driver > usable
    verdict = Verdict.TIGHT if tight else Verdict.FITS
    if refused is not None:
        verdict = Verdict.DOES_NOT_FIT
    return MachineVerdict(
        machine=machine.name or str(machine),
        verdict=verdict,
        peak_bytes=played.peak,
        driver_bytes=played.driver,
        usable_bytes=usable,
        limit_bytes=limit,
        refused=None if refused is None else place(events.mark(refused)),
    )


def timeline(
    events: Events, model: MpsAllocator, step: Callable[[Mark], tuple[int, str]]
) -> tuple[tuple[Moment, ...], int]:
    """Return some hundred moments, the largest of each stretch, and the record at the peak."""
    pairs = [(model.live_bytes, model.driver_bytes) for _ in events.play(model)]
    if not pairs:
        return (), -1
    peak = max(range(len(pairs)), key=pairs.__getitem__)
    width = max(1, len(pairs) // _MOMENTS)
    chosen = {max(range(i, min(i + width, len(pairs))), key=pairs.__getitem__)
              for i in range(0, len(pairs), width)} | {0, peak, len(pairs) - 1}  # fmt: skip
    marks = list(events.marks)
    moments: list[Moment] = []
    number, phase = 0, "setup"
    for index, event in enumerate(events.order):
        if event >= 0:
            number, phase = step(marks[events.places[event]])
        if index in chosen:
            live, driver = pairs[index]
            moments.append(
                Moment(event=index, step=number, phase=phase, live_bytes=live, driver_bytes=driver)
            )
    return tuple(moments), events.order[peak]
