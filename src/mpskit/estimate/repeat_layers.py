"""Repeats the middle layer of a sketched step: the events of a deep model from a shallow one.

The layers of a transformer allocate alike, so four are sketched: the first, one that is repeated,
the last but one and the last. A cell that one layer makes and a neighbour frees keeps that
distance. What comes and goes within one layer may be told only for the outermost of the repeated
layers: between them it takes the memory that it has just given back, and since what is kept grows
or shrinks from layer to layer, no peak is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mpskit.estimate.sketch import Sketch

__all__ = ["SKETCHED", "Step", "unroll"]

SKETCHED = 4
_REPEATED = 1


@dataclass
class Step:
    """The events of one step.

    Attributes:
        events: a cell's number when it is allocated, ``~number`` when it goes.
        sizes: bytes by cell number.
        gradients: the cells that are weights' gradients and stay.
        backward_at: position in the events where the backward pass begins.
    """

    events: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    gradients: set[int] = field(default_factory=set)
    backward_at: int = 0


class _Segment(NamedTuple):
    """The events of one layer in one phase (layer -1: around the layers).

    ``passing`` are the cells that come and go within it.
    """

    number: int
    phase: str
    layer: int
    events: list[int]
    passing: frozenset[int]

    def key(self, layer: int) -> tuple[str, int]:
        """Return what stands for it in the deep model; a stretch around the layers is its own."""
        return self.phase, layer if layer >= 0 else -1 - self.number


def unroll(sketch: Sketch, gradients: set[int], layers: int, *, lean: bool = True) -> Step:
    """Return the step of a model with ``layers`` layers from the sketch of a shallow one.

    Args:
        sketch: a step of as many layers, at most ``SKETCHED``.
        gradients: the numbers of the cells that are weights' gradients.
        layers: layers of the deep model.
        lean: leave out what comes and goes within one of the inner repeated layers.
    """
    ends = [*(mark.position for mark in sketch.marks[1:]), len(sketch.events)]
    segments = []
    for number, (mark, end) in enumerate(zip(sketch.marks, ends, strict=True)):
        events = sketch.events[mark.position : end]
        passing = frozenset(events) & {~event for event in events}
        segments.append(_Segment(number, mark.phase, mark.layer, events, passing))
    return _Unroller(sketch.sizes, gradients, segments, layers, lean=lean).step


class _Unroller:
    def __init__(
        self,
        sizes: list[int],
        gradients: set[int],
        segments: list[_Segment],
        layers: int,
        *,
        lean: bool,
    ) -> None:
        self.step = Step()
        self._sizes = sizes
        self._gradients = gradients
        self._added = max(layers - SKETCHED, 0)
        # cell -> its segment, and how many cells the segment made before
        self._origin: dict[int, tuple[_Segment, int]] = {}
        # what stands in the deep model -> the numbers of the cells that it made
        self._made: dict[tuple[str, int], list[int]] = {}
        for segment in segments:
            cells = [event for event in segment.events if event >= 0]
            self._origin |= {cell: (segment, place) for place, cell in enumerate(cells)}
        for segment in segments:
            places = list(self._places(segment))
            for layer in places:
                inner = layer not in (places[0], places[-1])
                self._emit(segment, layer, lean=lean and inner)

    def _places(self, segment: _Segment) -> Iterable[int]:
        """Return the layers of the deep model for which a segment stands, in order of time."""
        if segment.layer != _REPEATED:
            return (self._placed(segment.layer),)
        middle = range(_REPEATED, _REPEATED + self._added + 1)
        return middle if segment.phase == "forward" else reversed(middle)

    def _placed(self, layer: int) -> int:
        return layer + self._added if layer > _REPEATED else layer

    def _emit(self, segment: _Segment, layer: int, *, lean: bool) -> None:
        step = self.step
        made: list[int] = []
        self._made[segment.key(layer)] = made
        if segment.phase == "backward" and not step.backward_at:
            step.backward_at = len(step.events)
        for event in segment.events:
            if event < 0:
                step.events += self._freed(event, segment, layer, lean=lean)
                continue
            made.append(len(step.sizes))
            if event in self._gradients:
                step.gradients.add(len(step.sizes))
            if not (lean and event in segment.passing):
                step.events.append(len(step.sizes))
            step.sizes.append(self._sizes[event])

    def _freed(self, event: int, segment: _Segment, layer: int, *, lean: bool) -> list[int]:
        """Return what goes in the deep model where a cell goes in the shallow one."""
        if lean and ~event in segment.passing:
            return []
        owner, place = self._origin[~event]
        if owner.layer >= 0 and segment.layer >= 0:
            layers: Iterable[int] = (layer + owner.layer - segment.layer,)
        else:
            # What goes only when all layers are done goes for each layer.
            layers = self._places(owner)
        return [~self._made[owner.key(there)][place] for there in layers]
