"""``estimate_from_config``: a transformer's memory from its config, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpskit._data import read_toml
from mpskit.allocator import allocator_for
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.architectures import Architecture, read_architecture
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.sketch import Param, Sketch
from mpskit.estimate.transformer import Lora, Transformer
from mpskit.estimate.unroll import SKETCHED, Step, unroll
from mpskit.versions import torch_version as installed_torch

__all__ = ["estimate_from_config"]

# precision -> bytes of a weight, bytes of autocast's type
_PRECISIONS: dict[str, tuple[int, int | None]] = {
    "fp32": (4, None),
    "bf16": (2, None),
    "fp16": (2, None),
    "bf16-mixed": (4, 2),
    "fp16-mixed": (4, 2),
}
_DEVICES = ("cpu", "mps", "cuda")
_NEWEST_TORCH = "2.15.0"
_INDEX = 8  # bytes of a token's number
# Cells below the weights' bytes / _NEGLIGIBLE (and below _SMALL) are not replayed.
_NEGLIGIBLE = 20_000
_SMALL = 64 * 1024


def estimate_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    batch_size: int,
    seq_len: int,
    training: bool = True,
    lora: Mapping[str, Any] | int | None = None,
    precision: str = "fp32",
    optimizer: Any = "adamw",
    device: str = "mps",
    torch_version: str | None = None,
) -> MemoryEstimate:
    """Return what a step of a transformer takes, from its config alone.

    Neither torch nor transformers is imported. The operators of a few layers are sketched from
    the shapes, the middle layer is repeated, and the list of allocations goes through the same
    model of the target's allocator as a traced step.

    Args:
        config: a transformers config as a mapping, the path of a config.json (or its folder), or
            the name of a bundled model such as ``"Qwen/Qwen2.5-0.5B"``.
        batch_size: rows of the batch.
        seq_len: tokens in each row.
        training: a whole training step; False for one forward pass without gradients.
        lora: adapters, as a rank or as ``{"rank": 8, "targets": ["q_proj", "v_proj"]}``
            (``r`` and ``target_modules`` are taken too; the targets of a rank alone are query
            and value); every other weight is frozen.
        precision: ``fp32``, ``bf16``, ``fp16``, ``bf16-mixed`` or ``fp16-mixed``.
        optimizer: ``adamw``, ``adam``, ``sgd``, ``adagrad``, ``rmsprop``, a class of that name,
            or None for none.
        device: ``cpu``, ``mps`` or ``cuda``.
        torch_version: the torch whose allocator is meant; the installed one by default.

    Returns:
        The figures at the peak of a step in the steady state, in bytes; no timeline.

    Raises:
        ArgumentError: a missing key of the config (named), an unknown family, a wrong value.
        ArgumentTypeError: an argument of the wrong type.
    """
    arch = read_architecture(config)
    _check(batch_size, seq_len, precision, device)
    item, low = _PRECISIONS[precision]
    adapters = _lora(arch, lora)
    model = Transformer(
        arch, min(arch.layers, SKETCHED), batch_size, seq_len,
        item=item, lora=adapters, mps=device == "mps",
    )  # fmt: skip
    step = _sketched(model, training=training, low=low)
    return _Sum(
        model,
        step,
        _states(optimizer) if training else (0, 0, 0),
        batch_bytes=batch_size * seq_len * _INDEX * (2 if training else 1),
        device=device,
        torch=torch_version or installed_torch() or _NEWEST_TORCH,
    ).estimate(precision)


def _sketched(model: Transformer, *, training: bool, low: int | None) -> Step:
    sketch = Sketch(grad=training, low=low)
    loss = model.forward(sketch)
    if training:
        sketch.backward(loss)
    del loss
    built = [param for params in model.layer_params for param in params]
    kept = {param.grad.number for param in (*model.params, *built) if param.grad is not None}
    return unroll(sketch, kept, model.arch.layers)


class _Sum:
    """Adds up a step: what stays, what the pass adds, what the optimizer takes."""

    def __init__(
        self, model: Transformer, step: Step, states: tuple[int, int, int], *,
        batch_bytes: int, device: str, torch: str,
    ) -> None:  # fmt: skip
        self.step, self.device, self.torch = step, device, torch
        self.kept, self.single, self.foreach = states
        weights = list(_weights(model))
        self.weights = [param.size for param in weights]
        self.trained = [param.size for param in weights if param.trainable]
        self.allocator = allocator_for(device, torch_version=torch)
        # Bytes by cell and in sum, as the target counts them.
        self.sizes = step.sizes
        self.parameters = sum(self.weights)
        self.states = self.kept * sum(self.trained)
        self.batch = batch_bytes
        self.optimizing = self.foreach * sum(self.trained)
        if device != "cuda":
            self.optimizing = self.single * max(self.trained, default=0)
        if device != "cpu":
            self._play_both()

    def estimate(self, precision: str) -> MemoryEstimate:
        """Return the figures at the peak."""
        held, peak, at = self._passed()
        end = len(self.step.events)
        kinds = self._kinds(at if peak > held + self.optimizing else end)
        if peak <= held + self.optimizing:
            kinds["temporaries"] += self.optimizing
        live = self.parameters + self.states + self.batch + sum(kinds.values())
        return MemoryEstimate(
            device=self.device,
            torch_version=self.torch,
            precision=precision,
            method="closed-form",
            peak_bytes=live,
            driver_bytes=max(self.allocator.peak_driver_bytes, live),
            parameters_bytes=self.parameters,
            optimizer_bytes=self.states,
            batch_bytes=self.batch,
            gradients_bytes=kinds["gradients"],
            activations_bytes=kinds["activations"],
            temporaries_bytes=kinds["temporaries"],
        )

    def _passed(self) -> tuple[int, int, int]:
        """Return what is left after the pass, its peak, and the position of the peak."""
        live = peak = at = 0
        sizes = self.sizes
        for position, event in enumerate(self.step.events):
            if event < 0:
                live -= sizes[~event]
                continue
            live += sizes[event]
            if live > peak:
                peak, at = live, position
        return live, peak, at

    def _kinds(self, at: int) -> dict[str, int]:
        """Sort what is alive at a position: gradients, kept for the backward pass, the rest."""
        step, events = self.step, self.step.events
        alive = {event for event in events[: at + 1] if event >= 0}
        alive -= {~event for event in events[: at + 1] if event < 0}
        kept = {event for event in events[: step.backward_at] if event >= 0}
        kept &= {~event for event in events[max(at + 1, step.backward_at) :] if event < 0}
        gradients = alive & step.gradients
        activations = (alive & kept) - gradients
        groups = (gradients, activations, alive - gradients - activations)
        names = ("gradients", "activations", "temporaries")
        sizes = self.sizes
        return {
            name: sum(sizes[n] for n in group) for name, group in zip(names, groups, strict=True)
        }

    def _play_both(self) -> None:
        """Replay two steps: what the first one leaves cached shapes what the second one gets.

        What is too small to matter is counted as it is and not replayed, but for one such cell.
        """
        floor = min(sum(self.weights) // _NEGLIGIBLE, _SMALL)
        self._taken(min(floor, self.batch))
        sizes = self.step.sizes
        events = [e for e in self.step.events if sizes[e if e >= 0 else ~e] >= floor]
        self.parameters = self._taken_all(self.weights, floor)
        self._play(events, floor)
        self.sizes, self.optimizing = self._play(events, None)

    def _taken(self, size: int) -> tuple[int, int]:
        """Allocate, and return the block and the bytes that the allocator counts for it."""
        before = self.allocator.live_bytes
        block = self.allocator.allocate(size)
        return block, self.allocator.live_bytes - before

    def _taken_all(self, sizes: Iterable[int], floor: int) -> int:
        """Allocate for good; return the bytes counted."""
        before, small = self.allocator.live_bytes, 0
        for size in sizes:
            if size >= floor:
                self.allocator.allocate(size)
            else:
                small += size
        return self.allocator.live_bytes - before + small

    def _play(self, events: list[int], floor: int | None) -> tuple[list[int], int]:
        """Replay one step; return the bytes counted for each cell, and the optimizer's most.

        With a floor it is the first step, which makes the optimizer's states.
        """
        model, counted = self.allocator, list(self.step.sizes)
        requested = self.step.sizes
        blocks: dict[int, int] = {}
        live = model.live_bytes
        for event in events:
            if event < 0:
                block = blocks.pop(~event)
                model.free(block)
                live -= counted[~event]
            else:
                blocks[event] = model.allocate(requested[event])
                counted[event] = model.live_bytes - live
                live += counted[event]
        if floor is not None:
            self.states = self._taken_all(
                (n for n in self.trained for _ in range(self.kept)), floor
            )
        most = self._play_optimizer()
        for block in blocks.values():
            model.free(block)
        return counted, most

    def _play_optimizer(self) -> int:
        """Replay the temporaries of the optimizer: one weight of each size, or all at once."""
        groups = [[size] * self.single for size in dict.fromkeys(self.trained)]
        if self.device == "cuda":
            groups = [self.trained * self.foreach]
        most = 0
        for group in groups:
            taken = [self._taken(size) for size in group]
            most = max(most, sum(count for _, count in taken))
            for block, _ in taken:
                self.allocator.free(block)
        return most


def _weights(model: Transformer) -> Iterator[Param]:
    """Yield every weight of the deep model in the order of ``model.parameters()``."""
    yield from model.params[: model.before_layers]
    layers = model.layer_params
    repeats = max(model.arch.layers - len(layers), 0)
    for number, params in enumerate(layers):
        for _ in range(1 + (repeats if number == 1 else 0)):
            yield from params
    yield from model.params[model.before_layers :]


def _states(optimizer: Any) -> tuple[int, int, int]:
    """Return the optimizer's states, and its temporaries one by one and all at once."""
    if optimizer is None:
        return 0, 0, 0
    name = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", None)
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"an optimizer is a name, a class or None, not {optimizer!r}", given=optimizer
        )
    rules = read_toml("optimizers.toml")
    found = rules.get(name.lower())
    if found is None:
        raise ArgumentError(
            f"no closed form for the optimizer {name!r}: one of {', '.join(rules)}", given=optimizer
        )
    return found["states"], found["single"], found["foreach"]


def _check(batch_size: Any, seq_len: Any, precision: Any, device: Any) -> None:
    for name, count in (("batch_size", batch_size), ("seq_len", seq_len)):
        if isinstance(count, bool) or not isinstance(count, int):
            raise ArgumentTypeError(f"{name} is a whole number, not {count!r}", given=count)
        if count < 1:
            raise ArgumentError(f"{name} is at least 1, not {count}", given=count)
    for name, value, known in (("precision", precision, _PRECISIONS), ("device", device, _DEVICES)):
        if value not in known:
            raise ArgumentError(f"no {name} {value!r}: one of {', '.join(known)}", given=value)


def _lora(arch: Architecture, lora: Any) -> Lora | None:
    if lora is None:
        return None
    if isinstance(lora, int) and not isinstance(lora, bool):
        lora = {"rank": lora}
    if not isinstance(lora, Mapping):
        raise ArgumentTypeError(f"lora is a rank or a mapping, not {lora!r}", given=lora)
    rank = lora.get("rank", lora.get("r"))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ArgumentError(f"lora has no 'rank' of at least 1: {dict(lora)!r}", given=lora)
    names = list(Transformer.names(arch.family))
    return Lora(rank, _targets(lora.get("targets", lora.get("target_modules")), names))


def _targets(given: Any, names: list[str]) -> frozenset[str]:
    known = {name for name in names if name}
    if given is None:
        return frozenset((names[0], names[2]))
    if given == "all-linear":
        return frozenset(known)
    targets: Iterable[Any] = [given] if isinstance(given, str) else given
    chosen = frozenset(targets)
    if not chosen or not chosen <= known:
        raise ArgumentError(
            f"lora targets {sorted(map(str, chosen))} are not all among {', '.join(sorted(known))}",
            given=given,
        )
    return chosen
