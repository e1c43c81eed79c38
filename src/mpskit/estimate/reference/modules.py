"""One transformer for every family: torch.nn modules that its row of the table puts together.

Each runs the operators that transformers 5 runs for it (``models/*/modeling_*.py`` and
``integrations/moe.py``), in their order. Weights are made on ``meta``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mpskit.backends.versions import require
from mpskit.estimate.reference.attention import (
    META,
    NORMS,
    Attention,
    Cache,
    Rotary,
    Run,
    layer_norm,
    linear,
)
from mpskit.estimate.reference.base_weights import Base, Quantized, with_base
from mpskit.estimate.reference.config import Lora, Shape, refuse
from mpskit.estimate.reference.repeat_layers import Subject, traced_depth

__all__ = ["build_reference"]


def build_reference(
    shape: Shape,
    *,
    lora: Lora | None = None,
    checkpointing: bool = False,
    depth: int | None = None,
    base: Base | None = None,
) -> Subject:
    """Return a model of that shape, with as few layers as show the others.

    With adapters every other weight is frozen; with ``checkpointing`` the backward pass computes
    each layer again. ``depth`` is how many layers each stack gets, if not as few as will do;
    ``base`` says of what dtype weights and adapters are, if not of torch's default.

    Raises:
        ArgumentError: the activation is not known.
    """
    if shape.activation not in ACTIVATIONS:
        refuse(f"no activation {shape.activation[:80]!r} is modelled", shape.activation)
    layers = traced_depth(shape.layers, depth, alike=lora is None)
    model = Reference(shape, layers, checkpointing=checkpointing)
    blocks = [module for module in model.modules() if isinstance(module, _Block)]
    if base is not None:
        with_base(model, list(blocks), base)
    if lora is not None:
        model.requires_grad_(False)
        dtype = torch.float32 if base is None else base.adapters
        for block in blocks:
            block.adapt(lora, dtype)
    labels: Any = {"classes": "rows", "none": None}.get(shape.head, "tokens")
    stacks = [cast("_Stack", stack).layers for stack in model.stacks]
    return Subject(model, stacks, shape.layers, labels, shape.notes)


def _new_gelu(x: torch.Tensor) -> torch.Tensor:
    scale = math.sqrt(2.0 / math.pi)
    return 0.5 * x * (1.0 + torch.tanh(scale * (x + 0.044715 * torch.pow(x, 3.0))))


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": _new_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


class _Adapted(nn.Module):
    """A projection with a low-rank adapter beside it, as peft's ``lora.Linear``."""

    def __init__(self, base: nn.Linear | Quantized, lora: Lora, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        of: dict[str, Any] = {"bias": False, "device": META, "dtype": dtype}
        self.down = nn.Linear(base.in_features, lora.rank, **of)
        self.up = nn.Linear(lora.rank, base.out_features, **of)
        self.dropout = nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        dtype = result.dtype
        x = x.to(self.down.weight.dtype)
        result = result + self.up(self.down(self.dropout(x))) * 2.0
        return cast("torch.Tensor", result.to(dtype))


class _AdaptedQuantized(_Adapted):
    """The same beside a quantized projection, as peft's ``lora.bnb`` has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        if self.base.clones:
            result = result.clone()
        dtype = result.dtype
        x = x.to(self.down.weight.dtype)
        made = self.up(self.down(self.dropout(x))) * 2.0
        made = made.to(dtype)
        return cast("torch.Tensor", result + made)


class _Mlp(nn.Module):
    """The way up, an activation, and the way down: gated or not."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.act, self.dropout = ACTIVATIONS[shape.activation], shape.dropout["inner"]
        self.fused = shape.columns["mlp"] == "fused-gated"
        self.casts = shape.columns["casts_inner"]
        biased, gated = "mlp" in shape.columns["bias"], shape.columns["mlp"] == "gated"
        self.gate = linear(shape, shape.hidden, shape.inner, bias=biased) if gated else None
        self.up = linear(shape, shape.hidden, shape.inner * (2 if self.fused else 1), bias=biased)
        self.down = linear(shape, shape.inner, shape.hidden, bias=biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:
            x = self.act(self.gate(x)) * self.up(x)
        else:
            x = self.up(x)
            if self.fused:
                gate, x = x.chunk(2, dim=-1)
                x = x * self.act(gate)
            else:
                x = self.act(x)
        x = functional.dropout(x, self.dropout, self.training)
        if (
            self.casts
            and (wide := getattr(self.down, "base", self.down).weight).is_floating_point()
        ):
            x = x.to(wide.dtype)
        return cast("torch.Tensor", self.down(x))


class _Experts(nn.Module):
    """Several gated MLPs in one weight each way, and a router that sends tokens to some of them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        count, wide, inner = shape.experts, shape.hidden, shape.inner
        self.act, self.each = ACTIVATIONS[shape.activation], shape.experts_each
        self.router = nn.Parameter(torch.empty(count, wide, device=META))
        self.up = nn.Parameter(torch.empty(count, 2 * inner, wide, device=META))
        self.down = nn.Parameter(torch.empty(count, wide, inner, device=META))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.view(-1, x.shape[-1])
        chances = functional.softmax(functional.linear(rows, self.router).float(), dim=-1)
        weights, experts = torch.topk(chances, self.each, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        order, places = torch.sort(experts.reshape(-1))
        chosen = rows[places // self.each]
        sample = weights.reshape(-1)[places]
        counts = torch.histc(order.float(), bins=len(self.router), min=0, max=len(self.router) - 1)
        ends = torch.cumsum(counts, dim=0, dtype=torch.int32)
        made = _grouped(chosen, self.up, ends)
        gate, up = made.chunk(2, dim=-1)
        made = self.act(gate) * up
        made = _grouped(made, self.down, ends)
        made = made * sample.unsqueeze(-1)
        back = torch.empty_like(places)
        back[places] = torch.arange(places.shape[0])
        made = made[back].view(len(rows), self.each, -1).sum(dim=1)
        return made.to(rows.dtype).view(x.shape)


def _grouped(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    require("grouped_mm")
    multiply: Any = functional.grouped_mm
    return cast("torch.Tensor", multiply(x.to(weight.dtype), weight.transpose(-2, -1), offs=ends))


class _Block(nn.Module):
    """One layer: attention and MLP, with norms and sums in the family's order."""

    def __init__(self, shape: Shape, *, causal: bool, cross: bool, buckets: int) -> None:
        super().__init__()
        norm = NORMS[shape.columns["norm"]]
        self.dropout = shape.dropout["hidden"]
        self.checkpointing = False
        self.order: Callable[..., torch.Tensor] = RESIDUALS[shape.columns["residual"]]
        self.attention = Attention(shape, causal=causal, cross=False, buckets=buckets)
        self.crossing = Attention(shape, causal=False, cross=True, buckets=0) if cross else None
        self.mlp = (_Experts if shape.columns["mlp"] == "experts" else _Mlp)(shape)
        norms = {"sandwich": 4, "parallel-shared": 1}.get(shape.columns["residual"], 2)
        for name in ("first", "second", "third", "fourth")[:norms]:
            setattr(self, name, norm(shape.hidden))
        self.across = norm(shape.hidden) if cross else None

    def forward(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        """Run the layer, or let the backward pass run it again."""
        if self.checkpointing and self.training:
            again: Any = checkpoint(self.order, self, x, run, use_reentrant=False)
            return cast("torch.Tensor", again)
        return self.order(self, x, run)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self.dropout, self.training)

    def adapt(self, lora: Lora, dtype: torch.dtype) -> None:
        """Put adapters beside the projections that have one."""
        for part in (self.attention, self.crossing, self.mlp):
            for role in sorted(lora.roles):
                base = getattr(part, role, None)
                if isinstance(base, Quantized):
                    setattr(part, role, _AdaptedQuantized(base, lora, dtype))
                elif isinstance(base, nn.Linear):
                    setattr(part, role, _Adapted(base, lora, dtype))


def _before(block: Any, x: torch.Tensor, run: Run) -> Any:
    kept = x
    x = block.first(x)
    x = block.attention(x, run)
    x = block.drop(x)
    x = kept + x
    kept = x
    x = block.second(x)
    x = block.mlp(x)
    x = block.drop(x)
    return kept + x


def _before_inline(block: Any, x: torch.Tensor, run: Run) -> Any:
    x = _added(block, x, block.first, lambda normed: block.attention(normed, run))
    if block.crossing is not None:
        x = _added(block, x, block.across, lambda normed: block.crossing(normed, run))
    return _added(block, x, block.second, block.mlp)


def _added(block: Any, x: torch.Tensor, norm: Any, part: Callable[..., Any]) -> torch.Tensor:
    normed = norm(x)
    made = part(normed)
    return x + cast("torch.Tensor", block.drop(made))


def _before_named(block: Any, x: torch.Tensor, run: Run) -> Any:
    kept = x
    x = block.first(x)
    attended = block.attention(x, run)
    attended = block.drop(attended)
    run.held.clear()
    x = attended + kept
    kept = x
    x = block.second(x)
    made = block.mlp(x)
    made = block.drop(made)
    return kept + made


def _sandwich(block: Any, x: torch.Tensor, run: Run) -> Any:
    kept = x
    x = block.first(x)
    x = block.attention(x, run)
    x = block.second(x)
    x = kept + x
    kept = x
    x = block.third(x)
    x = block.mlp(x)
    x = block.fourth(x)
    return kept + x


def _after(block: Any, x: torch.Tensor, run: Run) -> Any:
    mixed = block.attention(x, run)
    mixed = block.drop(mixed)
    x = block.first(mixed + x)
    del mixed
    made = block.mlp(x)
    made = block.drop(made)
    return block.second(made + x)


def _parallel(block: Any, x: torch.Tensor, run: Run) -> Any:
    attended = block.attention(block.first(x), run)
    attended = block.drop(attended)
    made = block.mlp(block.second(x))
    return block.drop(made) + attended + x


def _parallel_shared(block: Any, x: torch.Tensor, run: Run) -> Any:
    normed = block.first(x)
    attended = block.attention(normed, run)
    made = block.mlp(normed)
    made += attended
    return x + block.drop(made)


RESIDUALS: dict[str, Callable[..., torch.Tensor]] = {
    "before": _before,
    "before-inline": _before_inline,
    "before-named": _before_named,
    "sandwich": _sandwich,
    "after": _after,
    "parallel": _parallel,
    "parallel-shared": _parallel_shared,
}


class _Stack(nn.Module):
    """Layers of one kind, and the norm behind them."""

    def __init__(self, shape: Shape, layers: int, *, causal: bool, cross: bool) -> None:
        super().__init__()
        self.dropout = shape.dropout["final"]
        self.layers = nn.ModuleList(
            _Block(shape, causal=causal, cross=cross, buckets=0 if number else shape.buckets)
            for number in range(layers)
        )
        ends = shape.columns["residual"] != "after"
        self.end = NORMS[shape.columns["norm"]](shape.hidden) if ends else None

    def forward(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, run)
        if self.end is not None:
            x = self.end(x)
        return functional.dropout(x, self.dropout, self.training)


class _Head(nn.Module):
    """What stands on top: scores over the vocabulary or over classes, or nothing."""

    def __init__(self, shape: Shape, table: nn.Embedding) -> None:
        super().__init__()
        hidden, self.shape = shape.hidden, shape
        encoder = shape.columns["stacks"] == "encoder"
        self.dense = linear(shape, hidden, hidden, bias=True) if encoder else None
        self.norm = layer_norm(hidden) if shape.head == "masked" else None
        outputs = {"classes": shape.labels, "none": 0}.get(shape.head, shape.vocabulary)
        self.out = nn.Linear(hidden, outputs, bias=encoder, device=META) if outputs else None
        if self.out is not None and outputs == shape.vocabulary and shape.tied:
            self.out.weight = table.weight
        if self.norm is not None and self.out is not None:
            self.bias = self.out.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        head, cap = self.shape.head, self.shape.caps[1]
        if head == "masked" and self.dense is not None and self.norm is not None:
            x = self.norm(ACTIVATIONS[self.shape.activation](self.dense(x)))
        elif self.dense is not None:
            x = torch.tanh(self.dense(x[:, 0]))
            x = functional.dropout(x, self.shape.dropout["hidden"], self.training)
        elif head == "generation" and self.shape.tied:
            x = x * self.shape.hidden**-0.5
        if self.out is not None:
            x = self.out(x)
        if cap is not None:
            x = x / cap
            x = torch.tanh(x)
            x = x * cap
        return x


class Reference(nn.Module):
    """A family's model, with as many layers in each stack as are wanted."""

    def __init__(self, shape: Shape, layers: tuple[int, ...], *, checkpointing: bool) -> None:
        super().__init__()
        columns, hidden = shape.columns, shape.hidden
        self.shape, self.checkpointing = shape, checkpointing
        self.words = nn.Embedding(shape.vocabulary, hidden, device=META)
        if columns["scaled_embedding"]:
            self.register_buffer("scale", torch.empty((), device=META), persistent=False)
        self.types = nn.Embedding(shape.types, hidden, device=META) if shape.types else None
        places = shape.positions
        self.places = nn.Embedding(places, hidden, device=META) if places else None
        self.norm = layer_norm(hidden) if columns["embedding_norm"] else None
        kinds = STACKS[columns["stacks"]]
        self.stacks = nn.ModuleList(
            _Stack(shape, count, causal=kind == "decoder", cross=kind == "decoder" and number > 0)
            for number, (kind, count) in enumerate(zip(kinds, layers, strict=True))
        )
        self.rotary = Rotary(shape.turned) if columns["positions"] == "rotary" else None
        self.head = _Head(shape, self.words)
        for module in self.modules():
            if isinstance(module, _Block):
                module.checkpointing = checkpointing
            _reorder(module, columns["order"])

    def forward(
        self, input_ids: torch.Tensor, labels: Any = None, cache: Cache | None = None
    ) -> dict[str, Any]:
        """Return the scores, the loss where there are labels, and the key-value cache.

        With a ``cache``, which is extended, the scores are those of the last token only.
        """
        run = Run()
        ids = input_ids
        if len(self.stacks) > 1:
            run.encoded = self.stacks[0](self._embedded(input_ids, run), run)
            run.bias = None
            run.embedded.clear()
            ids = input_ids if labels is None else _shifted_right(labels)
        if self._caches:
            run.cache = Cache() if cache is None else cache
        past = max(run.cache.tokens - ids.shape[1], 0) if run.cache is not None else 0
        x = self._embedded(ids, run, past)
        if self.rotary is not None:
            run.positions = (torch.arange(x.shape[1]) + past).unsqueeze(0)
            kinds = range(self.shape.columns["rotaries"])
            run.rotaries = [self.rotary(x, run.positions) for _ in kinds]
            run.rotary = run.rotaries[0]
        run.mask = self._mask(x, past)
        x = self.stacks[-1](x, run)
        kept, encoded = run.cache, run.encoded
        del run  # what the layers shared goes with the last of them
        scores = self.head(x if cache is None else x[:, -1:])
        loss = None
        if labels is not None and self.shape.head != "none":
            loss = self._loss(scores, labels)
        return {"loss": loss, "scores": scores, "cache": kept, "encoded": encoded}

    @property
    def _caches(self) -> bool:
        decodes = self.shape.columns["stacks"] != "encoder"
        return decodes and not (self.checkpointing and self.training)

    def _embedded(self, ids: torch.Tensor, run: Run, past: int = 0) -> torch.Tensor:
        words = self.words(ids)
        if self.shape.columns["scaled_embedding"]:
            words = words * cast("torch.Tensor", self.scale).to(words.dtype)
        x, held = words, [words]
        if self.types is not None:
            types = self.types(ids.new_zeros((1, ids.shape[1])).expand(ids.shape))
            x = x + types
        if self.places is not None:
            rows = len(ids) if self.shape.columns["positions"] == "counted" else 1
            places = self.places((torch.arange(ids.shape[1]) + past).repeat(rows, 1))
            x, held = x + places, [places, words]
        if self.norm is not None:
            x = self.norm(x)
        else:  # the forward pass of a stack holds what it began with
            run.embedded += held
        return functional.dropout(x, self.shape.dropout["embedding"], self.training)

    def _mask(self, x: torch.Tensor, past: int) -> torch.Tensor | None:
        """Return the causal mask, for each row of the batch, where attention needs one made."""
        in_float = self.shape.columns["attention"] == "written-out"
        if not (in_float or self.shape.masked):
            return None
        rows, tokens = x.shape[:2]
        keys = tokens + past
        lower = torch.arange(tokens)[:, None] + past >= torch.arange(keys)[None, :]
        lower = lower.expand(rows, 1, tokens, keys)
        low = torch.finfo(x.dtype).min
        return torch.where(lower, torch.zeros((), dtype=x.dtype), low) if in_float else lower

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.shape.head == "causal":
            scores = scores.float()
            padded = functional.pad(labels, (0, 1), value=-100)
            labels = padded[..., 1:].contiguous()
        scores = scores.view(-1, scores.shape[-1])
        return functional.cross_entropy(scores, labels.view(-1), ignore_index=-100)


def _reorder(module: nn.Module, order: Sequence[str]) -> None:
    """Let a module's children follow each other as the family's do: optimizers take them so."""
    for name in order:
        if name in module._modules:
            module._modules[name] = module._modules.pop(name)


STACKS = {
    "decoder": ("decoder",),
    "encoder": ("encoder",),
    "encoder-decoder": ("encoder", "decoder"),
}


def _shifted_right(labels: torch.Tensor) -> torch.Tensor:
    shifted = labels.new_zeros(labels.shape)
    shifted[..., 1:] = labels[..., :-1]
    return shifted.masked_fill(shifted == -100, 0)
