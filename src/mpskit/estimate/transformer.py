"""A transformer made of weights and operators: the forward pass of every family's modules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mpskit.estimate.architectures import Architecture
from mpskit.estimate.blocks import (
    Heads,
    cross_entropy,
    dropout,
    eager_attention,
    embed,
    flash_attention,
    layer_norm,
    math_attention,
    rms_norm,
    rotated,
    tanh_gelu,
)
from mpskit.estimate.sketch import Param, Sketch, Var

__all__ = ["Lora", "Transformer"]


@dataclass(frozen=True)
class Lora:
    """Adapters: their rank and the projections that have one, by the modules' own names."""

    rank: int
    targets: frozenset[str]


class _Linear:
    """A projection, with an adapter where there is one (then the weight itself is frozen)."""

    def __init__(self, model: Transformer, name: str, wide: int, out: int, *, bias: bool) -> None:
        self.weight = model.param(wide * out)
        self.bias = model.param(out) if bias else None
        self.adapter: tuple[Param, Param] | None = None
        if model.lora is not None and name in model.lora.targets:
            rank = model.lora.rank
            self.adapter = (model.adapter(wide * rank), model.adapter(rank * out))

    def __call__(self, s: Sketch, x: Var, rows: int) -> Var:
        result = s.linear(x, self.weight, self.bias, rows)
        if self.adapter is None:
            return result
        down, up = self.adapter
        added = s.scaled(s.linear(s.linear(x, down, None, rows), up, None, rows))
        return s.cast(s.add(result, added), result.item)


class _Norm:
    def __init__(self, model: Transformer, width: int) -> None:
        self.kind = model.arch.norm
        self.weight = model.param(width)
        self.bias = model.param(width) if self.kind == "layer" else None

    def __call__(self, s: Sketch, x: Var) -> Var:
        if self.bias is not None:
            return layer_norm(s, x, self.weight, self.bias)
        return rms_norm(s, x, self.weight, plus_one=self.kind == "rms-plus-one")


# module names by family: query, key, value, attention's output, gate, way up, way down
_ROPE_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NAMES = {
    "gpt2": ("c_attn", "c_attn", "c_attn", "c_proj", "", "c_fc", "c_proj"),
    "bert": ("query", "key", "value", "dense", "", "dense", "dense"),
    "roberta": ("query", "key", "value", "dense", "", "dense", "dense"),
}


class _Layer:
    def __init__(self, model: Transformer) -> None:
        arch = model.arch
        self.model = model
        q, k, v, o, gate, up, down = model.names(arch.family)
        width, wide = arch.hidden, arch.heads * arch.head_width
        narrow = arch.kv_heads * arch.head_width
        has = arch.bias.__contains__
        sizes = [(q, 3 * wide)] if arch.fused_qkv else [(q, wide), (k, narrow), (v, narrow)]
        self.qkv = [_Linear(model, name, width, out, bias=has("qkv")) for name, out in sizes]
        self.out = _Linear(model, o, wide, width, bias=has("out"))
        self.gate = _Linear(model, gate, width, arch.inner, bias=has("mlp")) if arch.gated else None
        self.up = _Linear(model, up, width, arch.inner, bias=has("mlp"))
        self.down = _Linear(model, down, arch.inner, width, bias=has("mlp"))
        self.norms = [_Norm(model, width) for _ in range(4 if arch.sandwich else 2)]
        self.qk_norms = [_Norm(model, arch.head_width) for _ in range(2 if arch.qk_norm else 0)]

    def __call__(self, s: Sketch, x: Var) -> Var:
        arch, drop = self.model.arch, self.model.arch.hidden_dropout
        if arch.encoder:  # the norms stand behind the sums
            first, second = self.norms
            x = first(s, s.add(dropout(s, self.attention(s, x), drop), x))
            return second(s, s.add(dropout(s, self.mlp(s, x), drop), x))
        before, *middle = self.norms
        attended = self.attention(s, before(s, x))
        if arch.sandwich:
            attended = middle[0](s, attended)
        x = s.add(x, dropout(s, attended, drop))
        del attended
        fed = self.mlp(s, middle[1 if arch.sandwich else 0](s, x))
        if arch.sandwich:
            fed = middle[2](s, fed)
        return s.add(x, dropout(s, fed, drop))

    def attention(self, s: Sketch, x: Var) -> Var:
        arch, heads = self.model.arch, self.model.heads
        rows = heads.batch * heads.tokens
        projected = [linear(s, x, rows) for linear in self.qkv]
        q, k, v = s.views(projected[0], 3) if arch.fused_qkv else projected
        del projected
        if self.qk_norms:
            q, k = self.qk_norms[0](s, q), self.qk_norms[1](s, k)
        if not arch.positions:
            q, k = rotated(s, q), rotated(s, k)
        if not arch.encoder:  # the key-value cache joins what it has with what is new
            k, v = s.shifted(k), s.op([v], v.numel, k.item, passes=True)  # in the key's type
            self.model.cache += [k, v]
        return self.out(s, self._mixed(s, q, k, v), rows)

    def _mixed(self, s: Sketch, q: Var, k: Var, v: Var) -> Var:
        arch, heads = self.model.arch, self.model.heads
        if arch.eager:
            return eager_attention(s, q, k, v, heads, softcap=arch.softcap_scores)
        if arch.attention_dropout and s.grad:
            # An encoder's values lie in another order and are copied; a cache's do not.
            v = s.shifted(v) if arch.encoder else v
            return math_attention(s, q, k, v, heads, arch.attention_dropout)
        return flash_attention(s, q, k, v, heads, mps=self.model.mps)

    def mlp(self, s: Sketch, x: Var) -> Var:
        rows = self.model.heads.batch * self.model.heads.tokens
        if self.gate is not None:
            inner = s.of_input(self.gate(s, x, rows))
            return self.down(s, s.product(inner, self.up(s, x, rows)), rows)
        inner = self.up(s, x, rows)
        written_out = self.model.arch.activation == "gelu_new"
        return self.down(s, tanh_gelu(s, inner) if written_out else s.of_input(inner), rows)


class Transformer:
    """A model of so many layers, for one shape of batch.

    Args:
        arch: the shape of the model.
        layers: how many layers to build (the closed form builds a few and repeats them).
        batch, tokens: the shape of the input.
        item: bytes of each weight.
        lora: adapters; every other weight is then frozen.
        mps: whether attention takes MPS's path.
    """

    def __init__(
        self, arch: Architecture, layers: int, batch: int, tokens: int, *,
        item: int, lora: Lora | None, mps: bool,
    ) -> None:  # fmt: skip
        self.arch, self.lora, self.mps, self.item = arch, lora, mps, item
        self.heads = Heads(batch, tokens, arch.heads, arch.kv_heads, arch.head_width)
        self.cache: list[Var] = []
        self.params: list[Param] = []
        self.layer_params: list[list[Param]] = []
        width = arch.hidden
        self.table = self.param(arch.vocabulary * width)
        others = ((arch.types, False), (arch.positions, True))
        self.others = [(self.param(n * width), shared) for n, shared in others if n]
        tables = len(self.params)
        self.norm = _Norm(self, width)
        self.before_layers = len(self.params) if arch.encoder else tables
        self.top = self._build_top(width)
        around, self.params = self.params, []
        self.layers = []
        for _ in range(layers):
            self.layers.append(_Layer(self))
            self.layer_params.append(self.params)
            self.params = []
        self.params = around

    def param(self, numel: int) -> Param:
        """Make a weight; frozen where there are adapters."""
        self.params.append(Param(numel, self.item, trainable=self.lora is None))
        return self.params[-1]

    def adapter(self, numel: int) -> Param:
        """Make an adapter's weight."""
        self.params.append(Param(numel, self.item))
        return self.params[-1]

    @staticmethod
    def names(family: str) -> Collection[str]:
        """Return a family's module names, query to the way down."""
        return _NAMES.get(family, _ROPE_NAMES)

    def forward(self, s: Sketch) -> Var:
        """Run the forward pass; the result is the loss, or without gradients the output."""
        s.mark("forward")
        x = self._embedded(s)
        for number, layer in enumerate(self.layers):
            s.mark("forward", number)
            x = layer(s, x)
        s.mark("forward")
        if not self.arch.encoder:
            x = self.norm(s, x)
        outputs = self._headed(s, x)
        result = self._loss(s, outputs)
        s.end_autocast()
        self.cache.clear()
        return result

    def _embedded(self, s: Sketch) -> Var:
        rows, width = self.heads.batch * self.heads.tokens, self.arch.hidden
        x = embed(s, self.table, width, rows)
        for table, shared in self.others:
            # Positions are the same for each row of the batch.
            x = s.add(x, embed(s, table, width, self.heads.tokens if shared else rows))
        if self.arch.norm == "rms-plus-one":
            x = s.scaled(x)
        if self.arch.encoder:
            x = self.norm(s, x)
        return dropout(s, x, self.arch.embedding_dropout)

    def _build_top(self, width: int) -> list[Param]:
        """Make the head's weights, in the order of use; the output's matrix may be the table."""
        arch, head = self.arch, self.arch.head
        dense = [width * width, width] if arch.encoder else []
        ends = {"classes": [width * arch.labels, arch.labels], "masked": [width, width]}
        top = [self.param(numel) for numel in (*dense, *ends.get(head, ()))]
        if head in {"causal", "masked"}:
            top.append(self.table if arch.tied else self.param(arch.vocabulary * width))
        if head == "masked":
            top.append(self.param(arch.vocabulary))
        return top

    def _headed(self, s: Sketch, x: Var) -> Var:
        rows, top, head = self.heads.batch * self.heads.tokens, self.top, self.arch.head
        if head == "causal":
            logits = s.linear(x, top[0], None, rows)
            if self.arch.softcap_logits:
                logits = s.scaled(logits)
                logits = s.of_output(logits)
                logits = s.scaled(logits)
            return logits
        if head == "masked":
            x = layer_norm(s, s.of_input(s.linear(x, top[0], top[1], rows)), top[2], top[3])
            return s.linear(x, top[4], top[5], rows)
        if self.arch.encoder:
            return self._pooled(s, x)
        return x

    def _pooled(self, s: Sketch, x: Var) -> Var:
        """Put the first token of each row through a dense layer, and the classifier behind it."""
        batch, top = self.heads.batch, self.top
        first = s.op([x], batch * self.arch.hidden, x.item)
        pooled = s.of_output(s.linear(first, top[0], top[1], batch))
        if self.arch.head == "none":
            return pooled
        return s.linear(dropout(s, pooled, self.arch.hidden_dropout), top[2], top[3], batch)

    def _loss(self, s: Sketch, outputs: Var) -> Var:
        if not s.grad or self.arch.head == "none":
            return outputs
        # A causal model asks for float32, and so does autocast; others take the type they have.
        wide = self.arch.head == "causal" or s.low is not None
        return cross_entropy(s, s.cast(outputs, 4) if wide else outputs)
