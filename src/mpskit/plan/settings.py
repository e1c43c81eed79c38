"""One way to train or to run a model, what it gives up, and which ways there are on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mpskit.backends.precisions import PRECISIONS
from mpskit.errors import ArgumentError
from mpskit.memory.batch_search import sizes_dividing

__all__ = [
    "PREFERENCES",
    "QUANTIZED",
    "Method",
    "Prefer",
    "Setting",
    "Sharding",
    "Way",
    "batch_sizes",
    "inference_ways",
    "ways",
]

Method = Literal["lora", "full"]
Prefer = Literal["speed", "fidelity"]
Sharding = Literal["ddp", "fsdp"]
PREFERENCES: tuple[Prefer, ...] = ("speed", "fidelity")

# What weights and arithmetic in fewer bits give up, from nothing to most. Mixed precision rounds
# results only; a half-precision base rounds frozen weights; quantized ones are rounded to a grid.
_LOSS = {"fp32": 0, "mixed": 1, "half": 2, "int8": 3, "nf4": 4}
QUANTIZED = ("int8", "nf4")
# Passes through the weights: forward, the gradient of the inputs, and that of the weights.
_PASSES: dict[Method, int] = {"full": 3, "lora": 2}
# Mixed precision casts every frozen weight again in each pass; a half-precision base does not.
_CASTING = 1.05


@dataclass(frozen=True)
class Setting:
    """One way to run a step.

    Attributes:
        rows: of each batch.
        accumulate: batches whose gradients are summed before the optimizer steps.
        seq_len: tokens in a row; None for a model that is no transformer from a config.
        precision: of weights and autocast, by mpskit's names: ``fp32``, ``bf16-mixed``.
        base: the dtype of frozen weights under adapters; None where they have the precision's.
        checkpointing: whether activations are computed again in the backward pass.
        rank: of the adapters; None trains every weight.
        targets: names of the modules that have adapters; empty for the usual ones.
        dropout: share of the adapters' input that is dropped; its mask is kept until backward.
        optimizer: its name in torch.optim, lower case.
        world_size: processes that train together, each with its own rows.
        sharding: ``ddp`` or ``fsdp`` for several processes; None for one.
    """

    rows: int = 1
    accumulate: int = 1
    seq_len: int | None = None
    precision: str = "fp32"
    base: str | None = None
    checkpointing: bool = False
    rank: int | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    optimizer: str = "adamw"
    world_size: int = 1
    sharding: Sharding | None = None

    def with_rows(self, rows: int, effective: int) -> Setting:
        """Return the same way with other rows, that add up to ``effective`` of them."""
        return replace(self, rows=rows, accumulate=max(effective // rows, 1))

    @property
    def words(self) -> str:
        """Say what differs from float32 with everything kept."""
        weights = {None: self.precision, "int8": "8-bit base", "nf4": "4-bit base"}
        parts = [weights.get(self.base, f"{self.base} base")]
        if self.base is not None and PRECISIONS[self.precision][1] is not None:
            parts.append(f"{self.precision} arithmetic")
        if self.checkpointing:
            parts.append("checkpointing")
        if self.optimizer not in ("adamw", "none"):
            parts.append(self.optimizer)
        if self.sharding is not None:
            parts.append(f"{self.sharding.upper()} on {self.world_size}")
        return " + ".join(parts)

    @property
    def kind(self) -> str:
        """The precision's kind, by what it gives up."""
        if self.base in QUANTIZED:
            return str(self.base)
        if self.base is not None or PRECISIONS[self.precision][0] is not None:
            return "half"
        return "fp32" if PRECISIONS[self.precision][1] is None else "mixed"


@dataclass(frozen=True)
class Way:
    """A setting whose rows are still open, and how it compares with the others.

    Attributes:
        setting: with one row.
        loss: what it gives up in precision; 0 for nothing.
        time: of a row, as a share of a pass through the weights in float32.
    """

    setting: Setting
    loss: int
    time: float


def batch_sizes(effective: int, fixed: int | None = None) -> tuple[int, ...]:
    """Return the sizes of a batch that divide the effective one, smallest first.

    Raises:
        ArgumentError: ``fixed`` does not divide it, or it is absurdly large.
    """
    if fixed is not None:
        if effective % fixed:
            raise ArgumentError(
                f"a batch of {fixed} does not divide an effective batch of {effective}: choose one "
                f"of {', '.join(map(str, batch_sizes(effective)))}",
                given=fixed,
            )
        return (fixed,)
    return tuple(sizes_dividing(effective))


def ways(
    first: Setting,
    *,
    half: str | None,
    mixed: str | None,
    half_rate: float,
    quantized: tuple[str, ...] = (),
    prefer: Prefer = "speed",
    fixed: Mapping[str, Any] | None = None,
    checkpoints: bool = True,
) -> list[Way]:
    """Return every way to run a step on a device, the preferred first.

    Args:
        first: the setting in float32, with nothing given up.
        half: ``bf16`` or ``fp16``: what frozen weights can be stored in there; None for neither.
        mixed: ``bf16-mixed`` or ``fp16-mixed``: what autocast is advised there; None for none.
        half_rate: arithmetic rate of ``half`` / that of float32.
        quantized: the dtypes of quantized weights that can be trained on there.
        prefer: ``speed`` puts the fastest first, ``fidelity`` the one that gives up least.
        fixed: fields of the setting that the user has decided.
        checkpoints: whether the model can recompute its activations.
    """
    decided, found = fixed or {}, []
    for weights in _allowed(_weights(first, half, mixed, quantized), decided):
        for checkpointing in (False, True) if checkpoints else (False,):
            for optimizer in _optimizers(first):
                setting = replace(
                    first, **weights, checkpointing=checkpointing, optimizer=optimizer
                )
                if all(getattr(setting, key) == value for key, value in decided.items()):
                    found.append(_way(setting, half_rate))
    key = _by_speed if prefer == "speed" else _by_fidelity
    return _spread(sorted(found, key=key), prefer)


def _spread(found: list[Way], prefer: Prefer) -> list[Way]:
    """Return the ways with each sharding: the whole model on each card comes first.

    Shares of it come before what gives up more: a quantized base, or any loss at all where
    fidelity is preferred.
    """
    if not found or found[0].setting.world_size == 1:
        return found
    spread = [
        replace(way, setting=replace(way.setting, sharding=sharding))
        for sharding in _SHARDINGS
        for way in found
        if sharding == "ddp" or way.setting.kind not in QUANTIZED
    ]
    if prefer == "fidelity":
        return sorted(spread, key=lambda way: way.loss)
    return sorted(spread, key=lambda way: way.setting.kind in QUANTIZED)


_SHARDINGS: tuple[Sharding, ...] = ("ddp", "fsdp")


def inference_ways(
    first: Setting,
    *,
    half: str | None,
    quantized: tuple[str, ...] = (),
    prefer: Prefer = "speed",
    fixed: Mapping[str, Any] | None = None,
) -> list[Way]:
    """Return the ways to store a model that is not trained, the preferred first.

    Args:
        first: the setting in float32.
        half: ``bf16`` or ``fp16``: what the device stores and computes in; None for neither.
        quantized: the dtypes of quantized weights that run there.
        prefer: ``speed`` starts with ``half``, since decoding waits for the weights to be read;
            ``fidelity`` with float32.
        fixed: ``precision`` or ``base``, if the user has decided.
    """
    weights: list[dict[str, Any]] = [{"precision": "fp32", "base": None}]
    if half is not None:
        weights.insert(0 if prefer == "speed" else 1, {"precision": half, "base": None})
    # Quantized weights beside half-precision arithmetic, which every machine that runs them has.
    weights += [{"precision": half or "fp32", "base": base} for base in quantized]
    allowed = _allowed(iter(weights), fixed or {})
    return [_way(replace(first, **one), 1.0) for one in allowed]


def _by_speed(way: Way) -> tuple[bool, float, int]:
    # Nobody has published how long it takes on a Mac to unpack quantized weights in each pass.
    return way.setting.kind in QUANTIZED, way.time, way.loss


def _by_fidelity(way: Way) -> tuple[int, float]:
    return way.loss, way.time


def _weights(
    first: Setting, half: str | None, mixed: str | None, quantized: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    yield {"precision": "fp32", "base": None}
    if mixed is not None:
        yield {"precision": mixed, "base": None}
    if first.rank is None:
        return
    for base in (half, *quantized):
        if base is not None:
            yield {"precision": "fp32", "base": base}


def _allowed(offered: Iterator[dict[str, Any]], decided: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the weights that agree with what is decided; what the user decides needs no advice."""
    asked = {key: decided[key] for key in ("precision", "base") if key in decided}
    agreeing = [one for one in offered if asked.items() <= one.items()]
    return agreeing or [{"precision": "fp32", "base": None, **asked}]


def _optimizers(first: Setting) -> tuple[str, ...]:
    """Return AdamW, and Adafactor where AdamW's states are large: with every weight trained."""
    if first.rank is None and first.optimizer == "adamw":
        return "adamw", "adafactor"
    return (first.optimizer,)


def _way(setting: Setting, half_rate: float) -> Way:
    kind = setting.kind
    passes = _PASSES["full" if setting.rank is None else "lora"] + setting.checkpointing
    rate = 1.0 if kind == "fp32" else half_rate
    time = passes / rate * (_CASTING if kind == "mixed" and setting.rank is not None else 1.0)
    return Way(setting, _LOSS[kind] + (setting.optimizer != "adamw"), time)
