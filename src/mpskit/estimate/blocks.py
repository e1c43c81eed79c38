"""Pieces of a transformer: what each allocates and keeps, as transformers' eager modules do.

Read from transformers 5 (``models/*/modeling_*.py``, ``integrations/sdpa_attention.py``) and from
torch's formulas; each function stands for one module or one composite operator.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpskit.dispatch.mps_op_memory import mps_charge
from mpskit.estimate.sketch import Param, Sketch, Var

__all__ = [
    "Heads",
    "cross_entropy",
    "dropout",
    "eager_attention",
    "embed",
    "flash_attention",
    "layer_norm",
    "math_attention",
    "rms_norm",
    "rotated",
    "tanh_gelu",
]

_FLOAT = 4
_FLASH = "_scaled_dot_product_flash_attention_for_cpu"


def embed(s: Sketch, table: Param, width: int, rows: int) -> Var:
    """Look ``rows`` rows up in a table; the gradient has the table's size."""
    return s.op([table.var], rows * width, table.item)


def layer_norm(s: Sketch, x: Var, weight: Param, bias: Param) -> Var:
    """Normalise rows with the fused kernel, which keeps its input."""
    return s.op([x, weight.var, bias.var], x.numel, x.item, keeps=(x.cell,))


def rms_norm(s: Sketch, x: Var, weight: Param, *, plus_one: bool = False) -> Var:
    """Normalise rows as ``LlamaRMSNorm`` does, in float32; ``plus_one`` is Gemma's order."""
    wide = s.cast(x, _FLOAT)
    s.new(wide.size)  # the squares, gone once their mean is taken
    rows = s.op(
        [wide], wide.numel // weight.numel, _FLOAT, keeps=(wide.cell,), scratch=[wide.size] * 3
    )
    normed = s.op(
        [wide, rows], wide.numel, _FLOAT, keeps=(wide.cell, rows.cell), scratch=[wide.size]
    )
    if plus_one:
        return s.cast(_gained(s, normed, weight), x.item)
    return _gained(s, s.cast(normed, x.item), weight)


def _gained(s: Sketch, x: Var, weight: Param) -> Var:
    """Multiply rows by a weight, whose gradient is summed from a full product."""
    gain = weight.var
    kept, scratch = ((x.cell,), [x.size]) if gain.node else ((), [])
    return s.op([x, gain], x.numel, max(x.item, gain.item), keeps=kept, scratch=scratch)


def rotated(s: Sketch, x: Var) -> Var:
    """Apply rotary positions: two products, half of one negated and joined again.

    Under autocast the positions, and with them the result, stay in float32.
    """
    item = _FLOAT if s.low else x.item
    size = x.numel * item
    product = s.new(size)
    half = s.new(x.size // 2)
    turned = s.new(x.size)
    del half
    other = s.new(size)
    del turned
    made = s.new(size)
    del product, other
    return s.op([x], x.numel, item, scratch=[size] * 3, made=made)


def dropout(s: Sketch, x: Var, probability: float) -> Var:
    """Drop some numbers; the noise has the input's type and is kept."""
    if not probability or not s.grad:
        return x
    noise = s.new(x.size)
    return s.op([x], x.numel, x.item, keeps=(noise,))


def tanh_gelu(s: Sketch, x: Var) -> Var:
    """GPT-2's GELU, written out in eight operators (``NewGELUActivation``)."""
    half = s.scaled(x)
    base = s.cast(x, _FLOAT) if s.wide_powers else x
    inner = s.scaled(s.add(x, s.scaled(s.of_input(base, moments=2))))
    return s.product(half, s.shifted(s.of_output(inner)))


@dataclass(frozen=True)
class Heads:
    """The shape of one attention call."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    width: int

    @property
    def weights(self) -> int:
        """Numbers in the matrix of weights."""
        return self.batch * self.heads * self.tokens * self.tokens


class _Operand:
    """As much of a tensor as ``mps_charge`` looks at."""

    def __init__(self, heads: Heads, count: int, item: int) -> None:
        self.shape = (heads.batch, count, heads.tokens, heads.width)
        self._numel = heads.batch * count * heads.tokens * heads.width
        self._item = item

    def element_size(self) -> int:
        return self._item

    def numel(self) -> int:
        return self._numel

    def nbytes(self) -> int:
        return self._numel * self._item

    def untyped_storage(self) -> _Operand:
        return self


def flash_attention(s: Sketch, q: Var, k: Var, v: Var, heads: Heads, *, mps: bool) -> Var:
    """One fused call that keeps what it reads, its result and a number for each row.

    On MPS, with gradients, the math path's matrices stand in the place of these numbers.
    """
    q, k, v = (s.lowered(x) for x in (q, k, v))
    rows = heads.batch * heads.heads * heads.tokens * _FLOAT
    moment, later = 0, 0
    if mps:
        rows, moment, later = _on_mps(heads, q.item, grad=bool(s.grad and q.node))
    made, kept = s.new(q.size), s.new(rows)
    s.new(moment)
    return s.op(
        [q, k, v],
        q.numel,
        q.item,
        keeps=(q.cell, k.cell, v.cell, made, kept),
        scratch=[later],
        made=made,
    )


def _on_mps(heads: Heads, item: int, *, grad: bool) -> tuple[int, int, int]:
    """Return what MPS keeps, takes for a moment, and takes for a moment in the backward pass."""
    q = _Operand(heads, heads.heads, item)
    kv = _Operand(heads, heads.kv_heads, item)
    forward = mps_charge(_FLASH, (q, kv, kv, 0.0), grad=grad)
    backward = mps_charge(f"{_FLASH}_backward", (q, q, kv, kv, q, q, 0.0), grad=grad)
    if forward is None or backward is None:
        return 0, 0, 0
    return forward.results.get(1, 0), forward.scratch_bytes, backward.scratch_bytes


def math_attention(s: Sketch, q: Var, k: Var, v: Var, heads: Heads, probability: float) -> Var:
    """The composite attention that dropout needs: every matrix of weights is written out.

    Half precision is computed in float32; the mask is added in place.
    """
    item = q.item
    q, k, v = (s.cast(x, _FLOAT) for x in (q, k, v))
    q, k = s.shifted(s.scaled(q)), s.shifted(s.scaled(k))
    weights = dropout(s, s.of_output(s.product(q, k, heads.weights)), probability)
    if item != _FLOAT:
        s.new(heads.weights * item)  # the weights are also offered as a result
    mixed = s.product(weights, v, q.numel)
    del weights, q, k, v
    return s.shifted(s.cast(mixed, item))


def eager_attention(s: Sketch, q: Var, k: Var, v: Var, heads: Heads, *, softcap: bool) -> Var:
    """Attention written out in Python (Gemma 2): keys and values repeated for every head."""
    groups = heads.heads // heads.kv_heads
    k, v = (s.op([x], x.numel * groups, x.item) for x in (k, v))
    q, k = s.lowered(s.shifted(q)), s.lowered(k)
    scores = s.scaled(s.product(q, k, heads.weights))
    if softcap:
        scores = s.scaled(s.of_output(s.scaled(scores)))
    scores = s.shifted(scores)
    weights = s.cast(s.of_output(s.cast(scores, _FLOAT)), q.item)
    del scores
    return s.shifted(s.product(weights, s.lowered(v), q.numel))


def cross_entropy(s: Sketch, logits: Var) -> Var:
    """The loss: the logarithms are kept, and their gradient is a full matrix twice."""
    logs = s.of_output(logits)
    return s.op([logs], 1, logits.item, keeps=(logs.cell,))
