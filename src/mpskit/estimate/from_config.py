"""``estimate_from_config``: a transformer's memory from its config, without torch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpskit._base.data import read_toml
from mpskit.backends.versions import NEWEST, has
from mpskit.backends.versions import torch_version as installed_torch
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.architectures import Architecture, read_architecture
from mpskit.estimate.closed_form import Parts, count
from mpskit.estimate.repeat_layers import SKETCHED, Step, unroll
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.sketch import Param, Sketch
from mpskit.estimate.transformer import Lora, Transformer

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
_INDEX = 8  # bytes of a token's number


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
    torch = torch_version or installed_torch() or NEWEST
    item, low = _PRECISIONS[precision]
    model = Transformer(
        arch, min(arch.layers, SKETCHED), batch_size, seq_len,
        item=item, lora=_lora(arch, lora), mps=device == "mps",
    )  # fmt: skip
    states = _states(optimizer) if training else None
    with _no_collection():
        return _estimated(_parts(model, device, torch, states, low), torch, precision)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Reference counts free all that a sketch makes; looking for cycles would only take time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parts(
    model: Transformer,
    device: str,
    torch: str,
    states: tuple[int, int, int] | None,
    low: int | None,
) -> Parts:
    """Sketch a step; without an optimizer's states (None) it is a forward pass alone."""
    whole = device == "mps" and not has("mps.placement_heaps", torch)
    sketch = Sketch(grad=states is not None, low=low, wide_powers=device != "cpu")
    sketch.backward(model.forward(sketch))
    built = [param for params in model.layer_params for param in params]
    kept = {param.grad.number for param in (*model.params, *built) if param.grad is not None}
    weights = list(_weights(model))
    rows = model.heads.batch * model.heads.tokens
    kinds, single, foreach = states or (0, 0, 0)
    return Parts(
        device=device,
        step=unroll(sketch, kept, model.arch.layers, lean=not whole),
        weights=[param.size for param in weights],
        trained=[param.size for param in weights if param.trainable],
        states=kinds,
        single=single,
        foreach=foreach,
        batch=rows * _INDEX * (1 if states is None else 2),
        whole=whole,
    )


def _estimated(parts: Parts, torch: str, precision: str) -> MemoryEstimate:
    """Return the figures at the peak: in the pass, or in the optimizer behind it."""
    counted = count(parts, torch)
    held, peak, at = _passed(parts.step.events, counted.sizes)
    optimizing = 0
    if peak <= held + counted.optimizing:
        peak, at = held + counted.optimizing, len(parts.step.events)
        optimizing = max((sum(sizes) for sizes in parts.optimizing()), default=0)
    gradients, activations, temporaries = _kinds(parts.step, at)
    kinds = {
        "parameters": sum(parts.weights),
        "gradients": gradients,
        "optimizer": parts.states * sum(parts.trained),
        "activations": activations,
        "temporaries": temporaries + optimizing,
        "batch": parts.batch,
    }
    live = counted.fixed + peak
    return MemoryEstimate(
        device=parts.device,
        torch_version=torch,
        precision=precision,
        method="closed-form",
        peak_bytes=live,
        driver_bytes=max(counted.driver, live),
        slack_bytes=live - sum(kinds.values()),
        parameters_bytes=kinds["parameters"],
        gradients_bytes=kinds["gradients"],
        optimizer_bytes=kinds["optimizer"],
        activations_bytes=kinds["activations"],
        temporaries_bytes=kinds["temporaries"],
        batch_bytes=kinds["batch"],
    )


def _passed(events: list[int], sizes: list[int]) -> tuple[int, int, int]:
    """Return what is left after the pass, its peak, and the position of the peak."""
    live = peak = at = 0
    for position, event in enumerate(events):
        if event < 0:
            live -= sizes[~event]
            continue
        live += sizes[event]
        if live > peak:
            peak, at = live, position
    return live, peak, at


def _kinds(step: Step, at: int) -> tuple[int, int, int]:
    """Return what is alive at a position: gradients, kept for the backward pass, the rest."""
    events, sizes = step.events, step.sizes
    alive = {event for event in events[: at + 1] if event >= 0}
    alive -= {~event for event in events[: at + 1] if event < 0}
    gradients = alive & step.gradients
    kept = {~event for event in events[max(at + 1, step.backward_at) :] if event < 0}
    kept &= alive
    # What the backward pass itself allocated and frees is no activation.
    kept -= {event for event in events[step.backward_at : at + 1] if event >= 0}
    rest = alive - gradients - kept
    sums = [sum(sizes[number] for number in group) for group in (gradients, kept, rest)]
    return sums[0], sums[1], sums[2]


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
    for name, size in (("batch_size", batch_size), ("seq_len", seq_len)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise ArgumentTypeError(f"{name} is a whole number, not {size!r}", given=size)
        if size < 1:
            raise ArgumentError(f"{name} is at least 1, not {size}", given=size)
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
