"""Repeats the middle layer of a traced step: the events of a deep model from a shallow one.

The layers of a transformer allocate alike, so three are traced. Each event of the middle one stands
for that event of every layer in between, in the order in which the layers run: upwards in the
forward pass, downwards in the backward pass. A storage that one layer makes and its neighbour frees
keeps that distance.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from mpskit.errors import EstimateError
from mpskit.estimate.trace.storage_log import Ledger, Record

__all__ = ["TRACED_LAYERS", "LayerMarks", "repeat_middle"]

TRACED_LAYERS = 3
_AROUND, _FIRST, _MIDDLE, _LAST = -1, 0, 1, 2  # _AROUND: what belongs to no layer


class LayerMarks:
    """Notes which layer each event of a trace belongs to.

    Forward by hooks on the layers, backward by hooks on the hidden states between them, and in an
    optimizer's step by the parameters that it hands to torch.
    """

    def __init__(
        self, model: torch.nn.Module, layers: Sequence[torch.nn.Module], ledger: Ledger
    ) -> None:
        self.ledger = ledger
        self.model = model
        self.layers = layers
        self.positions: list[tuple[int, int]] = [(0, _AROUND)]  # (event, layer that it begins)
        self.owners: dict[int, int] = {}  # record -> its layer, where that is not the running one

    def mark(self, layer: int) -> None:
        """Take what follows for that layer's."""
        if self.positions[-1][1] != layer:
            self.positions.append((len(self.ledger.events), layer))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the marks while steps run; the model is exchanged already."""
        with contextlib.ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                for parameter in layer.parameters():
                    record = self.ledger.number(parameter.untyped_storage())
                    if record is not None:
                        self.owners[record] = number
                hook = layer.register_forward_pre_hook(self._entering(number))
                stack.callback(hook.remove)
            hook = self.layers[-1].register_forward_hook(self._left)
            stack.callback(hook.remove)
            yield

    def stepping(self, step: Callable[[], Any]) -> Any:
        """Run an optimizer's step."""
        with _Parameters(self):
            result = step()
        self.mark(_AROUND)
        return result

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(_: torch.nn.Module, args: Any) -> None:
            if self.ledger.where.phase != "backward":  # there a checkpoint runs it again
                self.mark(number)
                self._on_gradient(args[0], number - 1)

        return enter

    def _left(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        if self.ledger.where.phase != "backward":
            self.mark(_AROUND)
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            self._on_gradient(hidden, len(self.layers) - 1)

    def _on_gradient(self, hidden: torch.Tensor, layer: int) -> None:
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.mark(layer))


class _Parameters(TorchFunctionMode):
    """Sees which parameters an optimizer works on: one at a time, or all in one call."""

    def __init__(self, marks: LayerMarks) -> None:
        super().__init__()
        self.marks = marks
        self._layer = {id(parameter): _AROUND for parameter in marks.model.parameters()}
        for number, layer in enumerate(marks.layers):
            self._layer |= {id(parameter): number for parameter in layer.parameters()}
        self._lists: dict[int, list[int]] = {}  # length -> layers; states come in the same order

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        listed = next((arg for arg in args if isinstance(arg, list | tuple)), None)
        if listed is None:
            if args and id(args[0]) in self._layer:
                self.marks.mark(self._layer[id(args[0])])
            result = func(*args, **kwargs or {})
            if func is _GRADIENT and result is not None:
                self._layer[id(result)] = self._layer.get(id(args[0]), _AROUND)
            return result
        self.marks.mark(_AROUND)
        start = len(self.marks.ledger.events)
        result = func(*args, **kwargs or {})
        made = [event for event in self.marks.ledger.events[start:] if event >= 0]
        self.marks.owners |= zip(made, itertools.cycle(self._layers_of(listed)))
        return result

    def _layers_of(self, tensors: Sequence[Any]) -> list[int]:
        layers = [self._layer.get(id(tensor), _AROUND) for tensor in tensors]
        if any(layer != _AROUND for layer in layers):
            return self._lists.setdefault(len(tensors), layers)
        return self._lists.get(len(tensors), layers)


_GRADIENT = torch.Tensor.grad.__get__  # type: ignore[attr-defined]


def repeat_middle(ledger: Ledger, marks: LayerMarks, layers: int) -> Ledger:
    """Return the events of the same step of a model with ``layers`` layers.

    Args:
        ledger: a step of ``TRACED_LAYERS`` layers, or of all where the model has no more.
        marks: which layer the events belong to.
        layers: layers of the deep model.

    Raises:
        EstimateError: the first and the last layer do not allocate as the middle one does.
    """
    added = layers - len(marks.layers)
    if added <= 0:
        return ledger
    return _Repeater(ledger, marks, added).deep()


class _Run(NamedTuple):
    """Consecutive events of one layer."""

    layer: int
    events: list[int]


class _Repeater:
    """Numbers the deep model's records: those of the shallow one, then the added layers' in turn.

    ``place`` counts a record among those of its layer; records of the same place correspond.
    """

    def __init__(self, ledger: Ledger, marks: LayerMarks, added: int) -> None:
        self.ledger = ledger
        self.added = added
        self.layer = [_AROUND] * len(ledger.records)
        self.place = [0] * len(ledger.records)
        self.middle: list[int] = []  # the middle layer's records by place
        self.runs = self._grouped(marks)

    def deep(self) -> Ledger:
        """Return the deep model's records and events."""
        records = self.ledger.records
        events: list[int] = []
        before = _FIRST
        for run in self.runs:
            if run.layer == _MIDDLE:
                events += self._repeated(run.events, upwards=before != _LAST)
            else:  # what the nearest of the middle layers made
                copy = self.added if run.layer == _LAST else 0
                events += [
                    self._number(e, copy) if e >= 0 else ~self._number(~e, copy) for e in run.events
                ]
            before = run.layer if run.layer != _AROUND else before
        added = [records[number] for number in self.middle] * self.added
        return Ledger(self.ledger.where, [*records, *added], events)

    def _grouped(self, marks: LayerMarks) -> list[_Run]:
        """Give every record its layer, and cut the events where the layer changes."""
        runs: list[_Run] = []
        counts = [0] * (TRACED_LAYERS + 1)
        starts = [position for position, _ in marks.positions]
        ends = [*starts[1:], len(self.ledger.events)]
        for (start, running), end in zip(marks.positions, ends, strict=True):
            for event in self.ledger.events[start:end]:
                if event >= 0:
                    layer = self.layer[event] = marks.owners.get(event, running)
                    self.place[event] = counts[layer]
                    counts[layer] += 1
                    if layer == _MIDDLE:
                        self.middle.append(event)
                else:  # what goes when no layer runs goes with its layer
                    layer = running if running != _AROUND else self.layer[~event]
                if not runs or runs[-1].layer != layer:
                    runs.append(_Run(layer, []))
                runs[-1].events.append(event)
        return runs

    def _repeated(self, events: list[int], *, upwards: bool) -> list[int]:
        """Return the middle layer's events for each layer that it stands for."""
        added, stride = self.added, len(self.middle)
        once = added if upwards else 0  # what no layer made goes with the last of them
        template = [self._copied(event, 2) for event in self._of_layers(events)]
        result: list[int] = []
        for copy in range(added + 1) if upwards else range(added, -1, -1):
            if 2 < copy < added:
                by = (copy - 2) * stride
                result += [event + by if event >= 0 else event - by for event in template]
            else:
                kept = events if copy == once else self._of_layers(events)
                result += [self._copied(event, copy) for event in kept]
        return result

    def _of_layers(self, events: list[int]) -> list[int]:
        return [e for e in events if self.layer[e if e >= 0 else ~e] != _AROUND]

    def _copied(self, event: int, copy: int) -> int:
        """Return a middle layer's event as it is in the layer ``copy`` above it."""
        record = event if event >= 0 else ~event
        layer = self.layer[record]
        # A neighbour of the traced layer stands for its neighbour there, unless that is itself.
        if layer == _FIRST and copy > 0:
            record = self._number(self._peer(record), copy - 1)
        elif layer == _LAST and copy < self.added:
            record = self._number(self._peer(record), copy + 1)
        elif layer == _MIDDLE:
            record = self._number(record, copy)
        return record if event >= 0 else ~record

    def _number(self, record: int, copy: int) -> int:
        if copy == 0 or self.layer[record] != _MIDDLE:
            return record
        return len(self.layer) + (copy - 1) * len(self.middle) + self.place[record]

    def _peer(self, record: int) -> int:
        """Return the middle layer's record that a neighbour's corresponds to."""
        place, records = self.place[record], self.ledger.records
        if place < len(self.middle):
            peer = self.middle[place]
            if records[peer].size == records[record].size:
                return peer
        raise EstimateError(
            f"the layers do not allocate alike ({records[record].op} in {records[record].module}): "
            "trace the model instead (estimate_training_memory)",
            given=records[record].module,
        )
