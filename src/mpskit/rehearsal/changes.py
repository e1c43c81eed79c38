"""What to change so that a run takes less memory, with what it would take then.

The events of the one run are replayed with some sizes scaled: half the batch halves what a step
allocates beside gradients, bf16 weights halve all of it. That the script would do just that is
assumed, and the figures say so (``scaled``); gradient checkpointing needs the script, and is named.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch

from mpskit.allocator import allocator_for
from mpskit.host import Machine
from mpskit.memory.working_set import recommended_bytes
from mpskit.rehearsal.memory import Events
from mpskit.rehearsal.result import Change, MachineVerdict, Verdict
from mpskit.simulation.rules import dtype_refusal

__all__ = ["Kinds", "changes"]

# Less of the weights than this is an adapter's share.
_MOST_TRAINED = 0.2


class _Kind(IntEnum):
    OTHER = 0
    WEIGHTS = 1
    GRADIENTS = 2
    OPTIMIZER = 3
    CASTS = 4  # autocast's copies of the weights
    ACTIVATIONS = 5  # and all else that a step allocates for its batch
    LOSS = 6  # those of the loss, which trainers compute in float32 whatever the weights are


_NAMED = {"weights": _Kind.WEIGHTS, "gradients": _Kind.GRADIENTS, "optimizer": _Kind.OPTIMIZER}


@dataclass
class Kinds:
    """Learns of a run's models and optimizers what the recorded allocations are.

    Args:
        record: returns the number of a living tensor's record; None where it has none.

    Attributes:
        batch: the largest first dimension that a model was called with; 0 where unknown.
        recomputes: a module ran inside a backward pass: checkpointing is on.
        trained: bytes of the parameters that have gradients.
    """

    record: Callable[[torch.Tensor], int | None]
    batch: int = 0
    recomputes: bool = False
    trained: int = 0
    _known: dict[int, _Kind] = field(default_factory=dict)
    _sizes: dict[str, set[int]] = field(default_factory=dict)
    _halves: dict[str, set[int]] = field(default_factory=dict)
    _widths: dict[torch.dtype, int] = field(default_factory=dict)
    _roots: weakref.WeakSet[torch.nn.Module] = field(default_factory=weakref.WeakSet)

    def called(self, root: torch.nn.Module, values: Iterable[Any]) -> None:
        """Note a model and what it is called with."""
        first = next((one for one in values if isinstance(one, torch.Tensor) and one.dim()), None)
        if first is not None:
            self.batch = max(self.batch, first.shape[0])
        if root not in self._roots:
            self._roots.add(root)
            self.look()

    def look(self) -> None:
        """Note the weights and gradients that live now."""
        self._widths, self.trained = {}, 0
        for root in self._roots:
            for path, module in root.named_modules():
                self._look_into(path or type(root).__name__, module)

    def _look_into(self, path: str, module: torch.nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            size = parameter.nbytes
            self._widths[parameter.dtype] = self._widths.get(parameter.dtype, 0) + size
            self.trained += size if parameter.requires_grad else 0
            self._sizes.setdefault(path, set()).update({size, parameter.numel() * 2})
            if parameter.dtype is torch.float32:
                self._halves.setdefault(path, set()).add(size // 2)
            self.note(parameter, "weights")
            if parameter.grad is not None:
                self.note(parameter.grad, "gradients")
        for buffer in module.buffers(recurse=False):
            self.note(buffer, "weights")

    def note(self, tensor: torch.Tensor, name: str) -> None:
        """Note that a tensor is one of the weights, gradients or the optimizer's state."""
        number = self.record(tensor)
        if number is not None:
            self._known.setdefault(number, _NAMED[name])

    @property
    def gradients(self) -> list[int]:
        """The records of the parameters' gradients."""
        return [one for one, kind in self._known.items() if kind is _Kind.GRADIENTS]

    @property
    def weights(self) -> int:
        """Bytes of the models' parameters."""
        return sum(self._widths.values())

    @property
    def single(self) -> bool:
        """Whether most of the weights are float32."""
        return 2 * self._widths.get(torch.float32, 0) > self.weights

    def listed(self, events: Events) -> list[_Kind]:
        """Return what each record is."""
        marks = list(events.marks)
        found = (self._of(marks[place], size) for place, size in
                 zip(events.places, events.sizes, strict=True))  # fmt: skip
        return [self._known.get(number, kind) for number, kind in enumerate(found)]

    def _of(self, mark: Any, size: int) -> _Kind:
        """Say of a record by its place and size what it is."""
        op, module, phase = mark[:3]
        if phase not in {"step", "backward"}:
            return _Kind.OTHER if phase == "setup" else _Kind.OPTIMIZER
        of_forward = phase == "step" or self.recomputes
        if op == "_to_copy" and of_forward and size in self._halves.get(module, ()):
            return _Kind.CASTS
        if phase == "backward" and size in self._sizes.get(module, ()):
            return _Kind.GRADIENTS
        return _Kind.LOSS if op.startswith("_log_softmax") else _Kind.ACTIVATIONS


Factors = dict[_Kind, float]
_HALF_BATCH: Factors = {_Kind.ACTIVATIONS: 0.5, _Kind.LOSS: 0.5}
_BF16: Factors = dict.fromkeys((_Kind.WEIGHTS, _Kind.GRADIENTS, _Kind.OPTIMIZER), 0.5)
# Autocast keeps no copies of frozen weights.
_WITHOUT_TRAINING: Factors = {_Kind.GRADIENTS: 0, _Kind.OPTIMIZER: 0, _Kind.CASTS: 0}


def changes(
    events: Events,
    kinds: Kinds,
    machines: list[Machine],
    verdicts: tuple[MachineVerdict, ...],
    torch_version: str,
) -> tuple[Change, ...]:
    """Return what to change, the smallest step first; nothing where the run fits all machines."""
    short = [
        (machine, verdict)
        for machine, verdict in zip(machines, verdicts, strict=True)
        if verdict.verdict is not Verdict.FITS
    ]
    if not short or not kinds.weights:
        return ()
    found = kinds.listed(events)
    return tuple(_changes(events, kinds, found, short, torch_version))


Short = list[tuple[Machine, MachineVerdict]]


def _changes(
    events: Events, kinds: Kinds, found: list[_Kind], short: Short, version: str
) -> Iterator[Change]:
    marks = list(events.marks)
    gradients = {one: marks[events.places[one]][3] for one in kinds.gradients}

    def scaled(
        what: str, factors: Factors, rewrite: Callable[[Events], Events] = lambda same: same
    ) -> Change:
        sizes = array(
            "q",
            (max(1, int(size * factors.get(kind, 1))) for size, kind in
             zip(events.sizes, found, strict=True)),
        )  # fmt: skip
        return _replayed(what, rewrite(replace(events, sizes=sizes)), short, version)

    trains = bool(gradients)
    if kinds.batch != 1:
        yield scaled("half the batch", _HALF_BATCH)
        if len(set(gradients.values())) > 1:
            what = "half the batch, and twice the gradient accumulation steps"
            yield scaled(what, _HALF_BATCH, lambda half: _accumulated(half, gradients))
    if trains and not kinds.recomputes:
        yield Change(what="gradient checkpointing: activations are computed again, not kept")
    if kinds.single and _has_bfloat16(short[0][0], version):
        mixed = _Kind.CASTS in found  # under autocast most activations are in bf16 already
        factors = _BF16 | ({_Kind.CASTS: 0} if mixed else {_Kind.ACTIVATIONS: 0.5})
        if mixed:
            yield scaled("all weights in bf16", factors)
        else:  # the logits get a float32 copy
            yield scaled(
                "all weights in bf16", factors, lambda half: _with_copies(half, found, _Kind.LOSS)
            )
    if trains and kinds.trained > _MOST_TRAINED * kinds.weights:
        yield scaled("LoRA in place of training all weights (adapters left out)", _WITHOUT_TRAINING)


def _has_bfloat16(machine: Machine, version: str) -> bool:
    return dtype_refusal(torch.bfloat16, torch_version=version, macos=machine.macos) is None


def _accumulated(events: Events, gradients: dict[int, int]) -> Events:
    """Return the events of steps that add to gradients which live already.

    Args:
        events: of steps that make their gradients anew.
        gradients: record of each parameter's gradient -> the step that made it.
    """
    first = min(gradients.values())

    def rewritten(event: int) -> tuple[int, ...]:
        made = gradients.get(max(event, ~event))
        if made is None or (event >= 0 and made == first):
            return (event,)
        return (event, ~event) if event >= 0 else ()  # added to the first, and freed

    return _rewritten(events, rewritten)


def _with_copies(events: Events, found: list[_Kind], kind: _Kind) -> Events:
    """Return the events with a second record beside each of a kind."""
    numbers = [number for number, one in enumerate(found) if one is kind]
    copies = {number: len(found) + index for index, number in enumerate(numbers)}
    sizes = events.sizes + array("q", (events.sizes[number] for number in numbers))

    def rewritten(event: int) -> tuple[int, ...]:
        copy = copies.get(max(event, ~event))
        if copy is None:
            return (event,)
        return (event, copy) if event >= 0 else (event, ~copy)

    return replace(_rewritten(events, rewritten), sizes=sizes)


def _rewritten(events: Events, rewrite: Callable[[int], tuple[int, ...]]) -> Events:
    """Return the events with each replaced by others, and the allocator's calls in their place."""
    order = array("q")
    calls: dict[int, list[float | None]] = {}
    for index, event in enumerate(events.order):
        if index in events.calls:
            calls.setdefault(len(order), []).extend(events.calls[index])
        order.extend(rewrite(event))
    return replace(events, order=order, calls=calls)


def _replayed(what: str, events: Events, short: Short, version: str) -> Change:
    model = allocator_for("mps", torch_version=version)
    for _ in events.play(model):
        pass
    driver, largest = model.peak_driver_bytes, max(events.sizes, default=0)
    fits = tuple(v.machine for machine, v in short if _fits(machine, v, driver, largest))
    return Change(
        what=what, peak_bytes=model.peak_live_bytes, driver_bytes=driver, scaled=True, fits=fits
    )


def _fits(machine: Machine, verdict: MachineVerdict, driver: int, largest: int) -> bool:
    buffer = recommended_bytes(machine.ram_bytes, machine.macos).max_buffer_bytes
    limits = (verdict.usable_bytes, verdict.limit_bytes)
    return all(one is None or driver <= one for one in limits) and (
        buffer is None or largest <= buffer
    )
