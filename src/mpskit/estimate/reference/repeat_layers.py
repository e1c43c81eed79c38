"""Repeats the middle layer of a traced step: the events of a deep model from a shallow one.

The layers of a transformer allocate alike, so three to five are traced. Each event of the middle
one stands for that event of every layer in between, in the order in which the layers run: upwards
in the forward pass, downwards in the backward pass. A storage that one layer makes and its
neighbour frees keeps that distance.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch.overrides import TorchFunctionMode

from mpskit.dispatch.patches import Patches
from mpskit.errors import EstimateError
from mpskit.estimate.trace.storage_log import StorageLog

__all__ = ["AROUND", "LayerMarks", "Passes", "Subject", "repeat_middle", "traced_depth"]

# A layer's number is its position in its stack, and _STACK more for each stack before.
_STACK = 1 << 12
AROUND = -1  # what belongs to no layer


@dataclass(frozen=True)
class Subject:
    """A model to trace, shallower than the one that is meant.

    Attributes:
        model: the model, with weights on ``meta``.
        stacks: its layers, by stack.
        layers: layers of each stack of the model that is meant.
        labels: what it takes for ``labels``: one for each token, one for each row, or none.
        notes: what the figures do not show.
    """

    model: torch.nn.Module
    stacks: Sequence[torch.nn.ModuleList]
    layers: tuple[int, ...]
    labels: Literal["tokens", "rows"] | None
    notes: tuple[str, ...] = ()


def traced_depth(
    layers: tuple[int, ...], depth: int | None = None, *, alike: bool = True
) -> tuple[int, ...]:
    """Return how many layers of each stack to trace: that at half of them is repeated.

    It needs a plain neighbour on both sides. The first layer is none where it is not ``alike`` (in
    a frozen model it has no gradient to pass on), and the outermost ones of two stacks are none:
    they share a tensor (an encoder's result, relative positions, whose gradient the last begins).
    """
    most = depth or ((3 if alike else 4) if len(layers) == 1 else 5)
    return tuple(min(count, most) for count in layers)


class Passes(Protocol):
    """What is told that a layer is entered and left; its events are that layer's."""

    def enter(self, layer: int) -> None:
        """Before a layer's forward pass."""

    def leave(self, layer: int) -> None:
        """After it."""

    def backward_enters(self, layer: int) -> None:
        """Before a layer's backward pass, where its result has a gradient."""

    def backward_leaves(self, layer: int) -> None:
        """After it, where its input has one."""


class LayerMarks:
    """Notes which layer each event of a trace belongs to.

    Forward by hooks on the layers, backward by hooks on the hidden states between them, and in an
    optimizer's step by the parameters that it hands to torch.
    """

    def __init__(
        self, model: torch.nn.Module, stacks: Sequence[torch.nn.ModuleList], log: StorageLog
    ) -> None:
        self.log = log
        self.model = model
        self.stacks = stacks
        self.passes: Passes | None = None
        self.positions: list[tuple[int, int]] = [(0, AROUND)]  # (event, layer that it begins)
        self.owners: dict[int, int] = {}  # record -> its layer, where that is not the running one
        self.left: set[int] = set()  # events at which the last layer of a stack has returned

    def mark(self, layer: int) -> None:
        """Take what follows for that layer's."""
        if self.positions[-1][1] != layer:
            self.positions.append((len(self.log.events), layer))

    def watch(self, patches: Patches) -> None:
        """Keep the marks while steps run; the model is exchanged already."""
        for number, layer in self.layers():
            for parameter in layer.parameters():
                record = self.log.number(parameter.untyped_storage())
                if record is not None:
                    self.owners[record] = number
            hook = self._entering(number, number - 1 if number % _STACK else AROUND)
            patches.on_exit(layer.register_forward_pre_hook(hook).remove)
        for number, layers in enumerate(self.stacks):
            last = number * _STACK + len(layers) - 1
            patches.on_exit(layers[-1].register_forward_hook(self._leaving(last)).remove)

    def record(self, storage: torch.UntypedStorage, layer: int, kind: str) -> None:
        """Record a storage of a layer that does not run."""
        self.log.add(storage, kind)
        number = self.log.number(storage)
        assert number is not None  # noqa: S101 - it has just been recorded
        self.owners[number] = layer

    def layers(self) -> Iterator[tuple[int, torch.nn.Module]]:
        """Yield every layer with its number."""
        for stack, layers in enumerate(self.stacks):
            yield from enumerate(layers, stack * _STACK)

    def stepping(self, step: Callable[[], Any]) -> Any:
        """Run an optimizer's step."""
        with _Parameters(self):
            result = step()
        self.mark(AROUND)
        return result

    def _entering(self, number: int, before: int) -> Callable[..., None]:
        def enter(_: torch.nn.Module, args: Any) -> None:
            if self.log.where.phase != "backward":  # there a checkpoint runs it again
                self._left(before)
                self.mark(number)
                if self.passes is not None:
                    self.passes.enter(number)
                self._on_gradient(args[0], before, number)

        return enter

    def _leaving(self, number: int) -> Callable[..., None]:
        def leave(_: torch.nn.Module, __: Any, output: Any) -> None:
            if self.log.where.phase != "backward":
                self._left(number)
                self.left.add(len(self.log.events))
                self.mark(AROUND)
                hidden = output if isinstance(output, torch.Tensor) else output[0]
                self._on_gradient(hidden, number, AROUND)

        return leave

    def _left(self, layer: int) -> None:
        if self.passes is not None and layer != AROUND:
            self.passes.leave(layer)

    def _on_gradient(self, hidden: torch.Tensor, layer: int, above: int) -> None:
        """Mark the layer whose backward pass begins where that of the one above it ends."""

        def passed(_: torch.Tensor) -> None:
            if self.passes is not None and above != AROUND:
                self.passes.backward_leaves(above)
            self.mark(layer)
            if self.passes is not None and layer != AROUND:
                self.passes.backward_enters(layer)

        if hidden.requires_grad:
            hidden.register_hook(passed)


class _Parameters(TorchFunctionMode):
    """Sees which parameters an optimizer works on: one at a time, or all in one call."""

    def __init__(self, marks: LayerMarks) -> None:
        super().__init__()
        self.marks = marks
        self._layer = {id(parameter): AROUND for parameter in marks.model.parameters()}
        for number, layer in marks.layers():
            self._layer |= {id(parameter): number for parameter in layer.parameters()}
        trained = [p for p in marks.model.parameters() if p.requires_grad]
        self._layer |= {id(p.grad): self._layer[id(p)] for p in trained if p.grad is not None}
        self._trained = [self._layer[id(parameter)] for parameter in trained]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Gradients and states are handed over in lists of the parameters' order.
        if not any(isinstance(a, list | tuple) and len(a) == len(self._trained) for a in args):
            if args and id(args[0]) in self._layer:
                self.marks.mark(self._layer[id(args[0])])
            return func(*args, **kwargs or {})
        self.marks.mark(AROUND)
        start = len(self.marks.log.events)
        result = func(*args, **kwargs or {})
        made = [event for event in self.marks.log.events[start:] if event >= 0]
        self.marks.owners |= zip(made, itertools.cycle(self._trained))
        return result


def repeat_middle(log: StorageLog, marks: LayerMarks, layers: Sequence[int]) -> StorageLog:
    """Return the events of the same step of a deeper model.

    Args:
        log: a step of a model with so many layers in each stack as are traced, or with all of
            them where it has no more.
        marks: which layer the events belong to.
        layers: layers of each stack of the deep model.

    Raises:
        EstimateError: the first and the last layer do not allocate as the middle one does.
    """
    added = [count - len(stack) for count, stack in zip(layers, marks.stacks, strict=True)]
    return _Repeater(log, marks, added).deep() if any(added) else log


class _Run(NamedTuple):
    """Consecutive events of one layer."""

    layer: int
    events: list[int]


class _Repeater:
    """Numbers the deep model's records: those of the shallow one, then the added layers' in turn.

    ``place`` counts a record among those of its layer; records of the same place correspond.
    """

    def __init__(self, log: StorageLog, marks: LayerMarks, added: Sequence[int]) -> None:
        self.log = log
        self.added = added  # by stack
        self.position = [len(stack) // 2 for stack in marks.stacks]  # of the repeated layer
        self.layer = [AROUND] * len(log.records)
        self.place = [0] * len(log.records)
        # The middle layer's records by place, and the number of the first that is added.
        self.middle: list[list[int]] = [[] for _ in added]
        self.runs = self._grouped(marks)
        self._compare()
        sizes = [count * len(middle) for count, middle in zip(added, self.middle, strict=True)]
        self.base = list(itertools.accumulate(sizes, initial=len(log.records)))

    def deep(self) -> StorageLog:
        """Return the deep model's records and events."""
        events: list[int] = []
        upwards = True
        for run in self.runs:
            stack, position = divmod(run.layer, _STACK)
            if run.layer == AROUND or not self.added[stack]:
                events += run.events
                continue
            if position == self.position[stack]:
                events += self._repeated(run.events, stack, upwards=upwards)
                continue
            upwards = position < self.position[stack]
            copy = 0 if upwards else self.added[stack]  # what the nearest of the layers made
            events += [
                self._number(e, copy) if e >= 0 else ~self._number(~e, copy) for e in run.events
            ]
        records = list(self.log.records)
        for count, middle in zip(self.added, self.middle, strict=True):
            records += [self.log.records[number] for number in middle] * count
        return StorageLog(self.log.where, records, events)

    def _grouped(self, marks: LayerMarks) -> list[_Run]:
        """Give every record its layer, and cut the events where the layer changes."""
        runs: list[_Run] = []
        counts: Counter[int] = Counter()
        starts = [position for position, _ in marks.positions]
        ends = [*starts[1:], len(self.log.events)]
        for (start, running), end in zip(marks.positions, ends, strict=True):
            # The caller gives a layer's input up when the layer has returned.
            returning = start in marks.left
            for event in self.log.events[start:end]:
                returning = returning and event < 0
                if event >= 0:
                    layer = self.layer[event] = marks.owners.get(event, running)
                    self.place[event] = counts[layer]
                    counts[layer] += 1
                    stack, position = divmod(layer, _STACK)
                    if layer != AROUND and position == self.position[stack]:
                        self.middle[stack].append(event)
                elif returning:
                    layer = runs[-1].layer
                else:  # what goes when no layer runs goes with its layer
                    layer = running if running != AROUND else self.layer[~event]
                if not runs or runs[-1].layer != layer:
                    runs.append(_Run(layer, []))
                runs[-1].events.append(event)
        return runs

    def _repeated(self, events: list[int], stack: int, *, upwards: bool) -> list[int]:
        """Return the middle layer's events for each layer that it stands for."""
        added, stride = self.added[stack], len(self.middle[stack])
        once = added if upwards else 0  # what no layer made goes with the last of them
        inner = [e for e in events if self.layer[e if e >= 0 else ~e] // _STACK == stack]
        template = [self._copied(event, stack, 2) for event in inner] if added > 3 else []
        result: list[int] = []
        for copy in range(added + 1) if upwards else range(added, -1, -1):
            if 2 < copy < added:
                by = (copy - 2) * stride
                result += [event + by if event >= 0 else event - by for event in template]
            else:
                kept = events if copy == once else inner
                result += [self._copied(event, stack, copy) for event in kept]
        return result

    def _copied(self, event: int, stack: int, copy: int) -> int:
        """Return a middle layer's event as it is in the layer ``copy`` above it."""
        record = event if event >= 0 else ~event
        owner, position = divmod(self.layer[record], _STACK)
        if owner == stack:
            # A neighbour of the traced layer stands for its neighbour there.
            there = copy + position - self.position[stack]
            if there == copy:
                record = self._number(record, copy)
            elif 0 <= there <= self.added[stack]:
                record = self._number(self._peer(record), there)
        return record if event >= 0 else ~record

    def _number(self, record: int, copy: int) -> int:
        """Return a record of the middle layer in the layer ``copy`` above it; others stay."""
        stack, position = divmod(self.layer[record], _STACK)
        if stack < 0 or position != self.position[stack] or copy == 0:
            return record
        return self.base[stack] + (copy - 1) * len(self.middle[stack]) + self.place[record]

    def _peer(self, record: int) -> int:
        """Return the middle layer's record that a neighbour's corresponds to."""
        return self.middle[self.layer[record] // _STACK][self.place[record]]

    def _compare(self) -> None:
        """Refuse layers of which the middle one's neighbours allocate something else."""
        records = self.log.records
        sizes: dict[int, list[int]] = defaultdict(list)
        for layer, record in zip(self.layer, records, strict=True):
            sizes[layer].append(record.size)
        for stack, added in enumerate(self.added):
            middle = stack * _STACK + self.position[stack]
            if added and not sizes[middle - 1] == sizes[middle] == sizes[middle + 1]:
                raise EstimateError(
                    "the layers do not allocate alike: trace the model instead "
                    "(estimate_training_memory)"
                )
