"""Attention of every family: how it is projected, turned by positions, masked and mixed.

Each function runs the operators that transformers 5 runs for it (``models/*/modeling_*.py`` and
``integrations/sdpa_attention.py``), in their order: what autograd keeps follows from that. Tensors
are [batch, heads, tokens, width] unless the name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from mpskit.estimate.reference.config import Shape

__all__ = ["META", "NORMS", "Attention", "Cache", "Rotary", "Run", "layer_norm", "linear"]

META = torch.device("meta")
_FARTHEST = 128  # tokens; T5 tells no farther distances apart
_MOST_GROUPED = 256  # head widths up to this let scaled_dot_product_attention repeat the keys
_Heads = tuple[torch.Tensor, ...]


class Cache:
    """Keys and values of every layer, as transformers' ``DynamicCache`` joins them: copies.

    Attributes:
        tokens: tokens of each row after the pass that runs.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._added = 0
        self._layers: list[list[torch.Tensor]] = []
        self._next = 0

    def begin(self, tokens: int) -> None:
        """Let the next forward pass fill the cache up to so many tokens."""
        self.tokens, self._added, self._next = tokens, tokens - self.tokens, 0

    def joined(self, key: torch.Tensor, value: torch.Tensor) -> _Heads:
        """Return the next layer's keys and values with the new ones behind them.

        One new token is taken for all that are added, where they are more: steps in between are
        left out.
        """
        number, self._next = self._next, self._next + 1
        if number == len(self._layers):
            self._layers.append([torch.tensor([], dtype=key.dtype) for _ in range(2)])
        held = self._layers[number]
        for place, new in enumerate((key, value)):
            if 1 == new.shape[2] < self._added:
                new = new.expand(-1, -1, self._added, -1)
            held[place] = torch.cat((held[place], new), dim=-2)
        return held[0], held[1]


class Run:
    """What the layers of one forward pass share."""

    def __init__(self) -> None:
        self.positions: torch.Tensor | None = None
        self.rotaries: list[_Heads] = []
        self.rotary: _Heads = ()  # the one in use: cosine and sine
        self.mask: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None  # of relative positions
        self.cross_bias: torch.Tensor | None = None
        self.encoded: torch.Tensor | None = None
        self.cache: Cache | None = None
        self.embedded: list[torch.Tensor] = []
        self.held: list[torch.Tensor] = []  # what attention's projections made, while it runs


class _Transposed(nn.Linear):
    """GPT-2's projection: a sum with the bias, a product with the weight the other way round."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name
        width = input.shape[-1]
        rows = torch.addmm(self.bias, input.view(-1, width), self.weight.view(width, -1))
        return rows.view(*input.shape[:-1], -1)


LINEARS: dict[str, type[nn.Linear]] = {"plain": nn.Linear, "transposed": _Transposed}


def linear(shape: Shape, wide: int, out: int, *, bias: bool) -> nn.Linear:
    """Make a projection without memory."""
    return LINEARS[shape.columns["linear"]](wide, out, bias=bias, device=META)


def layer_norm(width: int) -> nn.Module:
    """Make a LayerNorm without memory."""
    return nn.LayerNorm(width, device=META)


class _RmsNorm(nn.Module):
    """Llama's: in float32, cast back before the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=META))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        return self.weight * x.to(dtype)


class _GemmaNorm(_RmsNorm):
    """Gemma's: in float32 to the end, and one is added to the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self._normed(x.float())
        normed = normed * (1.0 + self.weight.float())
        return normed.type_as(x)

    @staticmethod
    def _normed(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class _T5Norm(_RmsNorm):
    """T5's: only the variance is in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        if self.weight.dtype in {torch.float16, torch.bfloat16}:
            x = x.to(self.weight.dtype)
        return self.weight * x


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms": _RmsNorm,
    "rms-plus-one": _GemmaNorm,
    "rms-t5": _T5Norm,
    "layer": layer_norm,
}


class Rotary(nn.Module):
    """Cosine and sine of every position."""

    inverse: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("inverse", "original"):
            self.register_buffer(name, torch.empty(width // 2, device=META), persistent=False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> _Heads:
        """Return both in the type of ``x``, shaped [1, tokens, width]."""
        angles = positions[..., None].float() * self.inverse
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * 1.0, both.sin() * 1.0
        return cos.to(x.dtype), sin.to(x.dtype)


def _turned(x: torch.Tensor, run: Run) -> torch.Tensor:
    cos, sin = run.rotary
    return (x * cos) + (_half_turned(x) * sin)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-high, low), dim=-1)


def _whole(query: torch.Tensor, key: torch.Tensor, run: Run) -> _Heads:
    return _turned(query, run), _turned(key, run)


def _parts(query: torch.Tensor, key: torch.Tensor, run: Run) -> _Heads:
    width = run.rotary[0].shape[-1]
    return query[..., :width], query[..., width:], key[..., :width], key[..., width:]


def _part(query: torch.Tensor, key: torch.Tensor, run: Run) -> _Heads:
    query, query_rest, key, key_rest = _parts(query, key, run)
    query, key = _whole(query, key, run)
    run.held += (key_rest, key, query_rest, query)
    whole = torch.cat((query, query_rest), dim=-1)
    return whole, torch.cat((key, key_rest), dim=-1)


def _part_rebound(query: torch.Tensor, key: torch.Tensor, run: Run) -> _Heads:
    query, query_rest, key, key_rest = _parts(query, key, run)
    query, key = _whole(query, key, run)
    query = torch.cat((query, query_rest), dim=-1)
    key = torch.cat((key, key_rest), dim=-1)
    return query, key


def _part_each(query: torch.Tensor, key: torch.Tensor, run: Run) -> _Heads:
    query, query_rest, key, key_rest = _parts(query, key, run)
    query = torch.cat((_turned(query, run), query_rest), dim=-1)
    return query, torch.cat((_turned(key, run), key_rest), dim=-1)


ROTATIONS: dict[str, Callable[..., _Heads]] = {
    "whole": _whole,
    "part": _part,
    "part-rebound": _part_rebound,
    "part-each": _part_each,
}


class Attention(nn.Module):
    """One projection or three, over itself or over another stack's result."""

    def __init__(self, shape: Shape, *, causal: bool, cross: bool, buckets: int) -> None:
        super().__init__()
        columns = shape.columns
        self.shape, self.causal, self.cross = shape, causal, cross
        self.relative = columns["positions"] == "relative"
        self.scale = 1.0 if self.relative or columns["scaled_query"] else shape.head_width**-0.5
        wide, narrow = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        biased = "qkv" in columns["bias"]
        self.cut = PROJECTIONS[columns["projection"]]
        self.query = linear(
            shape, shape.hidden, wide + (2 * narrow if self.cut else 0), bias=biased
        )
        if self.cut is None:
            self.key = linear(shape, shape.hidden, narrow, bias=biased)
            self.value = linear(shape, shape.hidden, narrow, bias=biased)
        self.out = linear(shape, wide, shape.hidden, bias="out" in columns["bias"])
        if columns["qk_norm"]:
            norm = NORMS[columns["norm"]]
            self.query_norm, self.key_norm = norm(shape.head_width), norm(shape.head_width)
        if buckets:
            self.buckets = nn.Embedding(buckets, shape.heads, device=META)

    def forward(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        """Mix the tokens of each row, [batch, tokens, hidden]."""
        mixed = self._mixed(x, run)
        if self.shape.columns["held"] == "until-output":
            run.held.clear()
        x = self.out(mixed.flatten(2))
        if self.shape.columns["held"] != "through-dropout":
            run.held.clear()
        return x

    def _mixed(self, x: torch.Tensor, run: Run) -> torch.Tensor:
        columns = self.shape.columns
        query, key, value = self._projected(x, run)
        if columns["qk_norm"] == "both":
            query, key = self.query_norm(query), self.key_norm(key)
        if run.rotary:
            query, key = ROTATIONS[columns["rotary"]](query, key, run)
        if run.cache is not None:
            key, value = run.cache.joined(key, value)
        mask = self._bias(query, key, run) if self.relative else run.mask
        run.held += (value, key, query)
        attend = ATTENTIONS[columns["attention"]]
        return attend(self, query, key, value, mask)

    def _projected(self, x: torch.Tensor, run: Run) -> _Heads:
        if self.cut is not None:
            fused = self.query(x)
            run.held.append(fused)
            return self.cut(fused, self.shape)
        columns, width = self.shape.columns, self.shape.head_width
        source, query = run.encoded if self.cross else x, self.query(x)
        if columns["scaled_query"]:
            query = query * width**-0.5
        if columns["qk_norm"] == "each":
            query = self.query_norm(_cut(query, width)).transpose(1, 2)
            key = self.key_norm(_cut(self.key(source), width)).transpose(1, 2)
        else:
            query, key = _by_head(query, width), _by_head(self.key(source), width)
        return query, key, _by_head(self.value(source), width)

    def _bias(self, query: torch.Tensor, key: torch.Tensor, run: Run) -> torch.Tensor:
        """Return what is added to the scores: T5's relative positions, and the causal mask."""
        queries, keys = query.shape[2], key.shape[2]
        if self.cross:
            if run.cross_bias is None:
                run.cross_bias = query.new_zeros((1, self.shape.heads, queries, keys))
            return run.cross_bias.contiguous()
        if hasattr(self, "buckets"):
            here, there = torch.arange(queries)[:, None] + 0, torch.arange(keys)[None, :]
            bucket = _buckets(there - here, self.shape.buckets, both=not self.causal)
            run.bias = self.buckets(bucket).permute([2, 0, 1]).unsqueeze(0)
        bias: Any = run.bias
        if self.causal:
            lower = torch.arange(queries)[:, None] >= torch.arange(keys)[None, :]
            bias = torch.where(lower[None, None], bias, torch.finfo(key.dtype).min)
        return cast("torch.Tensor", bias.contiguous())


def _buckets(distance: torch.Tensor, count: int, *, both: bool) -> torch.Tensor:
    """Return the row for each distance: near ones have one each, far ones share by logarithm."""
    found: Any = 0
    if both:
        count //= 2
        found += (distance > 0).to(torch.long) * count
        distance = torch.abs(distance)
    else:
        distance = -torch.min(distance, torch.zeros_like(distance))
    exact = count // 2
    near = distance < exact
    share = torch.log(distance.float() / exact) / math.log(_FARTHEST / exact)
    far = exact + (share * (count - exact)).to(torch.long)
    far = torch.min(far, torch.full_like(far, count - 1))
    found += torch.where(near, distance, far)
    return cast("torch.Tensor", found)


def _cut(x: torch.Tensor, width: int) -> torch.Tensor:
    return x.view(*x.shape[:-1], -1, width)


def _by_head(x: torch.Tensor, width: int) -> torch.Tensor:
    return _cut(x, width).transpose(1, 2)


def _split(fused: torch.Tensor, shape: Shape) -> _Heads:
    parts = fused.split(shape.heads * shape.head_width, dim=2)
    return tuple(_by_head(part, shape.head_width) for part in parts)


def _slices(fused: torch.Tensor, shape: Shape) -> _Heads:
    first = shape.heads * shape.head_width
    second = first + shape.kv_heads * shape.head_width
    parts = fused[..., :first], fused[..., first:second], fused[..., second:]
    return tuple(_by_head(part, shape.head_width) for part in parts)


def _each_head(fused: torch.Tensor, shape: Shape) -> _Heads:
    return _by_head(fused, 3 * shape.head_width).chunk(3, dim=-1)


def _multi_query(fused: torch.Tensor, shape: Shape) -> _Heads:
    fused = fused.unflatten(-1, (shape.heads + 2, shape.head_width))
    parts = fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]
    return tuple(part.transpose(1, 2) for part in parts)


def _groups(fused: torch.Tensor, shape: Shape) -> _Heads:
    fused = fused.unflatten(-1, (-1, shape.heads // shape.kv_heads + 2, shape.head_width))
    query, key, value = fused[:, :, :, :-2], fused[:, :, :, [-2]], fused[:, :, :, [-1]]
    parts = query, key.broadcast_to(query.shape), value.broadcast_to(query.shape)
    return tuple(part.flatten(2, 3).transpose(1, 2) for part in parts)


# How one projection, [batch, tokens, all], is cut into query, key and value.
PROJECTIONS: dict[str, Callable[[torch.Tensor, Shape], _Heads] | None] = {
    "apart": None,
    "split": _split,
    "slices": _slices,
    "heads": _each_head,
    "multi-query": _multi_query,
    "groups": _groups,
}


def _repeated(x: torch.Tensor, groups: int) -> torch.Tensor:
    if groups == 1:
        return x
    batch, heads, tokens, width = x.shape
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
    scores = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    scores = functional.dropout(scores, module.shape.dropout["attention"], module.training)
    return torch.matmul(scores, values).transpose(1, 2).contiguous()


ATTENTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "sdpa": _attended,
    "written-out": _written_out,
}
