"""One transformer for every family: torch.nn modules that a family's row of the table puts together.

Each piece runs the operators that transformers 5 runs for it (``models/*/modeling_*.py``,
``integrations/sdpa_attention.py``, ``integrations/moe.py``), in their order, because what autograd
keeps and what the allocator sees follow from that. Weights are made on ``meta``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mpskit.estimate.reference.config import Lora, Shape

__all__ = ["Reference", "build_reference"]

_META = torch.device("meta")
_FLOAT = torch.float32
_MOST_GROUPED = 256  # head widths up to this let scaled_dot_product_attention repeat the keys


def build_reference(
    shape: Shape, layers: tuple[int, ...], *, lora: Lora | None = None, checkpointing: bool = False
) -> Reference:
    """Return a model of that shape with so many layers in each of its stacks."""
    model = Reference(shape, layers, checkpointing=checkpointing)
    if lora is not None:
        model.requires_grad_(False)
        for module in [m for m in model.modules() if isinstance(m, Block)]:
            module.adapt(lora)
    return model


class RmsNorm(nn.Module):
    """Llama's: in float32, cast back before the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=_META))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        dtype = x.dtype
        x = x.to(_FLOAT)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        return self.weight * x.to(dtype)


class GemmaNorm(RmsNorm):
    """Gemma's: in float32 to the end, and one is added to the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        normed = self._normed(x.float())
        normed = normed * (1.0 + self.weight.float())
        return normed.type_as(x)

    @staticmethod
    def _normed(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class T5Norm(RmsNorm):
    """T5's: only the variance is in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        variance = x.to(_FLOAT).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        if self.weight.dtype in {torch.float16, torch.bfloat16}:
            x = x.to(self.weight.dtype)
        return self.weight * x


def _layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, device=_META)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms": RmsNorm,
    "rms-plus-one": GemmaNorm,
    "rms-t5": T5Norm,
    "layer": _layer_norm,
}


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


class Adapted(nn.Module):
    """A projection with a low-rank adapter beside it, as peft's ``lora.Linear``."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, device=_META)
        self.up = nn.Linear(rank, base.out_features, bias=False, device=_META)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the adapter's result to the frozen one."""
        result = self.base(x)
        dtype = result.dtype
        x = x.to(self.down.weight.dtype)
        result = result + self.up(self.down(x)) * 2.0
        return cast("torch.Tensor", result.to(dtype))


class Rotary(nn.Module):
    """Cosine and sine of every position."""

    inverse: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("inverse", "original"):
            self.register_buffer(name, torch.empty(width // 2, device=_META), persistent=False)

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both in the type of ``x``, shaped [1, tokens, width]."""
        angles = positions[..., None].float() * self.inverse
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * 1.0, both.sin() * 1.0
        return cos.to(x.dtype), sin.to(x.dtype)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-high, low), dim=-1)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return (x * cos) + (_half_turned(x) * sin)


def _whole(query: torch.Tensor, key: torch.Tensor, cos: Any, sin: Any) -> tuple[Any, Any]:
    return _rotated(query, cos, sin), _rotated(key, cos, sin)


def _part(query: torch.Tensor, key: torch.Tensor, cos: Any, sin: Any) -> tuple[Any, Any]:
    width = cos.shape[-1]
    turned = _whole(query[..., :width], key[..., :width], cos, sin)
    query = torch.cat((turned[0], query[..., width:]), dim=-1)
    return query, torch.cat((turned[1], key[..., width:]), dim=-1)


def _part_each(query: torch.Tensor, key: torch.Tensor, cos: Any, sin: Any) -> tuple[Any, Any]:
    width = cos.shape[-1]
    query = torch.cat([_rotated(query[..., :width], cos, sin), query[..., width:]], dim=-1)
    return query, torch.cat([_rotated(key[..., :width], cos, sin), key[..., width:]], dim=-1)


ROTATIONS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "whole": _whole,
    "part": _part,
    "part-each": _part_each,
}


class Run:
    """What the layers of one forward pass share."""

    def __init__(self) -> None:
        self.rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        self.mask: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None  # of relative positions
        self.cross_bias: torch.Tensor | None = None
        self.encoded: torch.Tensor | None = None
        self.cache: list[torch.Tensor] | None = None
        self.embedded: list[torch.Tensor] = []


def _linear(wide: int, out: int, *, bias: bool) -> nn.Linear:
    return nn.Linear(wide, out, bias=bias, device=_META)


class Attention(nn.Module):
    """Attention of every kind: one projection or three, over itself or another stack's result."""

    def __init__(self, shape: Shape, *, causal: bool, cross: bool, buckets: int) -> None:
        super().__init__()
        columns = shape.columns
        self.shape, self.causal, self.cross = shape, causal, cross
        self.relative = columns["positions"] == "relative"
        self.scale = 1.0 if self.relative or columns["scaled_query"] else shape.head_width**-0.5
        wide, narrow = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        biased = "qkv" in columns["bias"]
        self.cut = PROJECTIONS[columns["projection"]]
        self.query = _linear(shape.hidden, wide + (2 * narrow if self.cut else 0), bias=biased)
        if self.cut is None:
            self.key = _linear(shape.hidden, narrow, bias=biased)
            self.value = _linear(shape.hidden, narrow, bias=biased)
        self.out = _linear(wide, shape.hidden, bias="out" in columns["bias"])
        if columns["qk_norm"]:
            norm = NORMS[columns["norm"]]
            self.query_norm, self.key_norm = norm(shape.head_width), norm(shape.head_width)
        if buckets:
            self.buckets = nn.Embedding(buckets, shape.heads, device=_META)

    def forward(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        """Mix the tokens of each row, [batch, tokens, hidden]."""
        mixed = self._mixed(x, run)
        return cast("torch.Tensor", self.out(mixed.flatten(2)))

    def _mixed(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        query, key, value = self._projected(x, run.encoded if self.cross else x)
        if self.shape.columns["qk_norm"]:
            query, key = self.query_norm(query), self.key_norm(key)
        if run.rotary is not None:
            query, key = ROTATIONS[self.shape.columns["rotary"]](query, key, *run.rotary)
        if run.cache is not None:
            key, value = _cached(key, value)
            run.cache += (key, value)
        mask = self._bias(query, key, run) if self.relative else run.mask
        return ATTENTIONS[self.shape.columns["attention"]](self, query, key, value, mask)

    def _projected(self, x: torch.Tensor, source: Any) -> tuple[torch.Tensor, ...]:
        if self.cut is not None:
            return self.cut(self.query(x), self.shape)
        query = self.query(x)
        if self.shape.columns["scaled_query"]:
            query = query * self.shape.head_width**-0.5
        query = self._heads(query)
        return query, self._heads(self.key(source)), self._heads(self.value(source))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.shape.head_width)).transpose(1, 2)

    def _bias(self, query: torch.Tensor, key: torch.Tensor, run: Run) -> torch.Tensor:
        """Return what is added to the scores: T5's relative positions, and the causal mask."""
        queries, keys = query.shape[2], key.shape[2]
        if self.cross:
            if run.cross_bias is None:
                run.cross_bias = query.new_zeros((1, self.shape.heads, queries, keys))
            return run.cross_bias.contiguous()
        if hasattr(self, "buckets"):
            distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
            bucket = distance.abs().clamp(max=self.shape.buckets - 1)
            run.bias = self.buckets(bucket).permute([2, 0, 1]).unsqueeze(0)
        bias = cast("torch.Tensor", run.bias)
        if self.causal:
            lower = torch.arange(queries)[:, None] >= torch.arange(keys)[None, :]
            bias = torch.where(lower[None, None], bias, torch.finfo(key.dtype).min)
        return bias.contiguous()


def _cached(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Join both to an empty cache, as decoding does: copies, in the type that the keys have."""
    keys, values = (torch.tensor([], dtype=key.dtype) for _ in range(2))
    keys = torch.cat((keys, key), dim=-2)
    values = torch.cat((values, value), dim=-2)
    return keys, values


def _heads_of(parts: tuple[torch.Tensor, ...], shape: Shape) -> tuple[torch.Tensor, ...]:
    return tuple(p.unflatten(-1, (-1, shape.head_width)).transpose(1, 2) for p in parts)


def _split(fused: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    return _heads_of(fused.split(shape.heads * shape.head_width, dim=2), shape)


def _slices(fused: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    first = shape.heads * shape.head_width
    second = first + shape.kv_heads * shape.head_width
    parts = fused[..., :first], fused[..., first:second], fused[..., second:]
    return _heads_of(parts, shape)


def _each_head(fused: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    return fused.unflatten(-1, (-1, 3 * shape.head_width)).transpose(1, 2).chunk(3, dim=-1)


def _inside_heads(fused: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    fused = fused.unflatten(-1, (shape.heads, 3, shape.head_width))
    return tuple(fused[..., part, :].transpose(1, 2) for part in range(3))


def _multi_query(fused: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    fused = fused.unflatten(-1, (shape.heads + 2, shape.head_width))
    parts = fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]
    return tuple(part.transpose(1, 2) for part in parts)


def _groups(fused: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
    fused = fused.unflatten(-1, (-1, shape.heads // shape.kv_heads + 2, shape.head_width))
    query, key, value = fused[:, :, :, :-2], fused[:, :, :, [-2]], fused[:, :, :, [-1]]
    parts = query, key.broadcast_to(query.shape), value.broadcast_to(query.shape)
    return tuple(part.flatten(2, 3).transpose(1, 2) for part in parts)


# How one projection is cut into query, key and value, each [batch, heads, tokens, width].
PROJECTIONS: dict[str, Callable[[torch.Tensor, Shape], tuple[torch.Tensor, ...]] | None] = {
    "apart": None,
    "split": _split,
    "slices": _slices,
    "heads": _each_head,
    "heads-inside": _inside_heads,
    "multi-query": _multi_query,
    "groups": _groups,
}


def _repeated(x: torch.Tensor, groups: int) -> torch.Tensor:
    batch, heads, tokens, width = x.shape
    if groups == 1:
        return x
    x = x[:, :, None, :, :].expand(batch, heads, groups, tokens, width)
    return x.reshape(batch, heads * groups, tokens, width)


def _attended(
    module: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any
) -> torch.Tensor:
    """Call torch's fused attention, which repeats the keys itself where it need not be masked."""
    groups, options = query.shape[1] // key.shape[1], {}
    if groups > 1 and module.shape.columns["repeats_keys"]:
        if mask is None and key.shape[-1] <= _MOST_GROUPED:
            options["enable_gqa"] = True
        else:
            key, value = _repeated(key, groups), _repeated(value, groups)
    mixed = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=module.shape.dropout["attention"] if module.training else 0.0,
        scale=module.scale,
        is_causal=module.causal and mask is None and query.shape[2] > 1,
        **options,
    )
    return mixed.transpose(1, 2).contiguous()


def _written_out(
    module: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any
) -> torch.Tensor:
    """Compute the scores in Python, where they are capped."""
    groups, cap = query.shape[1] // key.shape[1], module.shape.caps[0]
    keys, values = _repeated(key, groups), _repeated(value, groups)
    scores = torch.matmul(query, keys.transpose(2, 3)) * module.scale
    if cap is not None:
        scores = scores / cap
        scores = torch.tanh(scores)
        scores = scores * cap
    scores = scores + mask
    scores = functional.softmax(scores, dim=-1, dtype=_FLOAT).to(query.dtype)
    scores = functional.dropout(scores, module.shape.dropout["attention"], module.training)
    return torch.matmul(scores, values).transpose(1, 2).contiguous()


ATTENTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "sdpa": _attended,
    "written-out": _written_out,
}


class Mlp(nn.Module):
    """The way up, an activation, and the way down: gated or not."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.act, self.dropout = ACTIVATIONS[shape.activation], shape.dropout["inner"]
        self.fused = shape.columns["mlp"] == "fused-gated"
        biased, gated = "mlp" in shape.columns["bias"], shape.columns["mlp"] == "gated"
        self.gate = _linear(shape.hidden, shape.inner, bias=biased) if gated else None
        self.up = _linear(shape.hidden, shape.inner * (2 if self.fused else 1), bias=biased)
        self.down = _linear(shape.inner, shape.hidden, bias=biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform each token on its own."""
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
        return cast("torch.Tensor", self.down(x))


class Experts(nn.Module):
    """Several gated MLPs in one weight each way, and a router that sends tokens to some of them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        count, wide, inner = shape.experts, shape.hidden, shape.inner
        self.act, self.each = ACTIVATIONS[shape.activation], shape.experts_each
        self.router = nn.Parameter(torch.empty(count, wide, device=_META))
        self.up = nn.Parameter(torch.empty(count, 2 * inner, wide, device=_META))
        self.down = nn.Parameter(torch.empty(count, wide, inner, device=_META))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sort the tokens by expert and multiply all groups at once."""
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
    multiply: Any = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    return cast(
        "torch.Tensor", multiply(x.to(weight.dtype), weight.transpose(-2, -1), offs=ends)
    )


class Block(nn.Module):
    """One layer: attention and MLP, with norms and sums in the family's order."""

    def __init__(self, shape: Shape, *, causal: bool, cross: bool, buckets: int) -> None:
        super().__init__()
        norm = NORMS[shape.columns["norm"]]
        self.dropout = shape.dropout["hidden"]
        self.checkpointing = False
        self.order: Callable[..., torch.Tensor] = RESIDUALS[shape.columns["residual"]]
        self.attention = Attention(shape, causal=causal, cross=False, buckets=buckets)
        self.crossing = Attention(shape, causal=False, cross=True, buckets=0) if cross else None
        self.mlp = (Experts if shape.columns["mlp"] == "experts" else Mlp)(shape)
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
        """Drop some numbers of a part's result."""
        return functional.dropout(x, self.dropout, self.training)

    def adapt(self, lora: Lora) -> None:
        """Put adapters beside the projections that have one."""
        for part in (self.attention, self.crossing, self.mlp):
            for role in sorted(lora.roles):
                base = getattr(part, role, None)
                if isinstance(base, nn.Linear):
                    setattr(part, role, Adapted(base, lora.rank))


def _before(block: Any, x: torch.Tensor, run: Run) -> Any:
    kept = x
    x = block.first(x)
    x = block.attention(x, run)
    x = block.drop(x)
    x = kept + x
    if block.crossing is not None:
        kept = x
        x = block.across(x)
        x = block.crossing(x, run)
        x = block.drop(x)
        x = kept + x
    kept = x
    x = block.second(x)
    x = block.mlp(x)
    x = block.drop(x)
    return kept + x


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
    "sandwich": _sandwich,
    "after": _after,
    "parallel": _parallel,
    "parallel-shared": _parallel_shared,
}


class Stack(nn.Module):
    """Layers of one kind, and the norm behind them."""

    def __init__(self, shape: Shape, layers: int, *, causal: bool, cross: bool) -> None:
        super().__init__()
        self.dropout = shape.dropout["final"]
        self.layers = nn.ModuleList(
            Block(shape, causal=causal, cross=cross, buckets=0 if number else shape.buckets)
            for number in range(layers)
        )
        ends = shape.columns["residual"] != "after"
        self.end = NORMS[shape.columns["norm"]](shape.hidden) if ends else None

    def forward(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        """Run every layer."""
        for layer in self.layers:
            x = layer(x, run)
        if self.end is not None:
            x = self.end(x)
        return functional.dropout(x, self.dropout, self.training)


class Head(nn.Module):
    """What stands on top: scores over the vocabulary or over classes, or nothing."""

    def __init__(self, shape: Shape, table: nn.Embedding) -> None:
        super().__init__()
        hidden, self.shape = shape.hidden, shape
        encoder = shape.columns["stacks"] == "encoder"
        self.dense = _linear(hidden, hidden, bias=True) if encoder else None
        self.norm = _layer_norm(hidden) if shape.head == "masked" else None
        outputs = {"classes": shape.labels, "none": 0}.get(shape.head, shape.vocabulary)
        self.out = _linear(hidden, outputs, bias=encoder) if outputs else None
        if self.out is not None and outputs == shape.vocabulary and shape.tied:
            self.out.weight = table.weight
        if self.norm is not None and self.out is not None:
            self.bias = self.out.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
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
        self.words = nn.Embedding(shape.vocabulary, hidden, device=_META)
        if columns["scaled_embedding"]:
            self.register_buffer("scale", torch.empty((), device=_META), persistent=False)
        self.types = nn.Embedding(shape.types, hidden, device=_META) if shape.types else None
        places = shape.positions
        self.places = nn.Embedding(places, hidden, device=_META) if places else None
        self.norm = _layer_norm(hidden) if columns["embedding_norm"] else None
        kinds = STACKS[columns["stacks"]]
        self.stacks = nn.ModuleList(
            Stack(shape, count, causal=kind == "decoder", cross=kind == "decoder" and number > 0)
            for number, (kind, count) in enumerate(zip(kinds, layers, strict=True))
        )
        self.rotary = Rotary(shape.turned) if columns["positions"] == "rotary" else None
        self.head = Head(shape, self.words)
        for module in self.modules():
            if isinstance(module, Block):
                module.checkpointing = checkpointing
            _reorder(module, columns["order"])

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> dict[str, Any]:
        """Return the scores, the loss where there are labels, and the key-value cache."""
        run = Run()
        ids = input_ids
        if len(self.stacks) > 1:
            run.encoded = self.stacks[0](self._embedded(input_ids, run), run)
            run.bias = None
            run.embedded.clear()
            ids = input_ids if labels is None else _shifted_right(labels)
        if self._caches:
            run.cache = []
        x = self._embedded(ids, run)
        if self.rotary is not None:
            positions = (torch.arange(x.shape[1]) + 0).unsqueeze(0)
            kinds = [self.rotary(x, positions) for _ in range(self.shape.columns["rotaries"])]
            run.rotary = kinds[0]
        run.mask = self._mask(x)
        x = self.stacks[-1](x, run)
        cache, encoded = run.cache, run.encoded
        del run  # what the layers shared goes with the last of them
        scores = self.head(x)
        loss = None
        if labels is not None and self.shape.head != "none":
            loss = self._loss(scores, labels)
        return {"loss": loss, "scores": scores, "cache": cache, "encoded": encoded}

    @property
    def _caches(self) -> bool:
        decodes = self.shape.columns["stacks"] != "encoder"
        return decodes and not (self.checkpointing and self.training)

    def _embedded(self, ids: torch.Tensor, run: Run) -> torch.Tensor:
        x = words = self.words(ids)
        if self.shape.columns["scaled_embedding"]:
            x = words * cast("torch.Tensor", self.scale).to(words.dtype)
        if self.types is not None:
            types = self.types(ids.new_zeros((1, ids.shape[1])).expand(ids.shape))
            x = x + types
        if self.places is not None:
            rows = len(ids) if self.shape.columns["positions"] == "counted" else 1
            places = self.places(torch.arange(ids.shape[1]).repeat(rows, 1))
            x = x + places
            if self.norm is None:
                run.embedded += (words, places)  # a decoder's forward pass holds them to its end
        if self.norm is not None:
            x = self.norm(x)
        return functional.dropout(x, self.shape.dropout["embedding"], self.training)

    def _mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the causal mask where attention needs one made."""
        in_float = self.shape.columns["attention"] == "written-out"
        if not (in_float or self.shape.masked):
            return None
        lower = torch.ones((x.shape[1], x.shape[1]), dtype=torch.bool).tril()[None, None]
        return torch.where(lower, 0.0, torch.finfo(x.dtype).min).to(x.dtype) if in_float else lower

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


STACKS = {"decoder": ("decoder",), "encoder": ("encoder",), "encoder-decoder": ("encoder", "decoder")}


def _shifted_right(labels: torch.Tensor) -> torch.Tensor:
    shifted = labels.new_zeros(labels.shape)
    shifted[..., 1:] = labels[..., :-1]
    return shifted.masked_fill(shifted == -100, 0)
