"""From the log to the figures: the peak, its parts, its place, and the timeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mpskit.estimate.result import KINDS, ModuleUse, Peak, TimelinePoint
from mpskit.estimate.trace.storage_log import Record, StorageLog
from mpskit.estimate.trace.user_line import shown

__all__ = ["Summary"]

_POINTS = 400
_TOP = 10


class Summary:
    """Reads a closed log beside what an allocator made of it.

    Args:
        log: the events of the traced steps.
        timeline: (live, driver) bytes of the target's allocator after each event.
    """

    def __init__(self, log: StorageLog, timeline: Sequence[tuple[int, int]]) -> None:
        self.records = log.records
        self.events = log.events
        self.live = [live for live, _ in timeline]
        self.driver = [driver for _, driver in timeline]
        self.peak_event = max(range(len(self.live)), key=self.live.__getitem__, default=-1)
        self.peak_bytes = self.live[self.peak_event] if self.live else 0
        high = (
            live + self.records[event].margin
            for event, live in zip(self.events, self.live, strict=True)
            if event >= 0
        )
        self.margin_bytes = max(max(high, default=0) - self.peak_bytes, 0)

    def at_peak(self) -> list[Record]:
        """Return what is alive at the peak."""
        alive: dict[int, None] = {}
        for event in self.events[: self.peak_event + 1]:
            if event >= 0:
                alive[event] = None
            else:
                alive.pop(~event, None)
        return [self.records[number] for number in alive]

    def by_kind(self) -> dict[str, int]:
        """Return the bytes of each kind at the peak, as the result names them."""
        total = Counter(dict.fromkeys(KINDS, 0))
        for record in self.at_peak():
            total[_kind(record)] += record.size
        total["slack"] = self.peak_bytes - total.total()
        return {f"{kind}_bytes": total[kind] for kind in KINDS}

    def place(self) -> Peak | None:
        """Return which operator reached the peak."""
        if self.peak_event < 0:
            return None
        record = self.records[self.events[self.peak_event]]
        step = max(record.step, 0)
        line = None if record.line is None else shown(record.line)
        return Peak(op=record.op, module=record.module, phase=record.phase, step=step, line=line)

    def top_modules(self) -> tuple[ModuleUse, ...]:
        """Return the modules that hold most at the peak beside parameters and states."""
        total: Counter[str] = Counter()
        for record in self.at_peak():
            if _kind(record) in {"activations", "temporaries"}:
                total[record.module] += record.size
        return tuple(ModuleUse(module=m, bytes_at_peak=n) for m, n in total.most_common(_TOP))

    def timeline(self) -> tuple[TimelinePoint, ...]:
        """Return some hundred moments, the largest of each stretch; the peak is one of them."""
        chosen = set(self._moments())
        total = dict.fromkeys(KINDS, 0)
        points: list[TimelinePoint] = []
        raw, step, phase = 0, 0, "setup"
        for index, event in enumerate(self.events):
            record = self.records[event if event >= 0 else ~event]
            change = record.size if event >= 0 else -record.size
            total[_kind(record)] += change
            raw += change
            if event >= 0:
                step, phase = max(record.step, 0), record.phase
            if index in chosen:
                total["slack"] = self.live[index] - raw
                points.append(_point(index, step, phase, total, self.driver[index]))
        return tuple(points)

    def _moments(self) -> Iterable[int]:
        width = max(1, len(self.live) // _POINTS)
        for start in range(0, len(self.live), width):
            stretch = range(start, min(start + width, len(self.live)))
            yield max(stretch, key=self.live.__getitem__)
        yield from (0, self.peak_event, len(self.live) - 1)


def _kind(record: Record) -> str:
    return record.kind or "temporaries"


def _point(index: int, step: int, phase: str, total: dict[str, int], driver: int) -> TimelinePoint:
    fields: dict[str, Any] = {f"{kind}_bytes": count for kind, count in total.items()}
    return TimelinePoint(event=index, step=step, phase=phase, driver_bytes=driver, **fields)
