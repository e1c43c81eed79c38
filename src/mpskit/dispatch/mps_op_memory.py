"""MPS memory that an operator uses beyond its outputs.

The estimator and the simulated Mac both run the CPU's operators, and charge these bytes where MPS
takes another path. Each rule returns the bytes to charge for some of the operator's outputs, as
long as they live, and the workspace that the kernel uses while it runs. Nothing here imports torch:
only shapes, itemsizes and storages of tensors are read.

Sources: torch's C++ for MPS, ``aten/src/ATen/native/transformers/attention.cpp`` (the choice of
path and ``_scaled_dot_product_attention_math``), ``native/mps/operations/Attention.mm`` and
``native/mps/operations/RnnOps.mm``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["RULES", "OpMemory", "Rule"]


class OpMemory(NamedTuple):
    """An operator's device memory that the CPU's outputs do not show.

    Attributes:
        outputs: position among the operator's outputs -> bytes to charge for its storage, as long
            as it lives. Outputs that are not named are charged their own size.
        workspace_bytes: taken once the outputs exist, and given back before the operator returns.
        workspace_high_bytes: its upper bound where it is uncertain; 0 where it is exact.
    """

    outputs: Mapping[int, int] = MappingProxyType({})
    workspace_bytes: int = 0
    workspace_high_bytes: int = 0


# Positional arguments as dispatch shows them, and whether autograd records the call (gradients are
# enabled and an argument needs one) -> what the operator takes.
Rule = Callable[[Sequence[Any], bool], OpMemory]


def _attention(args: Sequence[Any], grad: bool) -> OpMemory:
    """``_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal)``.

    With gradients MPS takes the math path, which keeps the weights (batch x heads x queries x
    keys), scaled copies of query and key, and copies of key and value for every query head.
    Without, ``_scaled_dot_product_attention_math_for_mps`` keeps nothing but takes the weights
    and the copies while it runs. The log-sum-exp of the CPU's path stands for what is kept.
    """
    query, key, value = args[:3]
    sizes = _Attention(query, key)
    repeated = sizes.copied(key) + sizes.copied(value)
    if not grad:
        return OpMemory({1: 0}, sizes.weights(query.element_size()) + repeated)
    weights = sizes.weights(sizes.itemsize)
    dropout = float(args[3]) if len(args) > 3 else 0.0
    kept = weights * (3 if dropout else 1)
    kept += sizes.replaced(query, sizes.full(query)) + sizes.replaced(key, sizes.full(key))
    if sizes.copied(value) or sizes.itemsize != query.element_size():
        kept += sizes.replaced(value, sizes.full(value))
    return OpMemory({1: max(kept, 0)}, weights)


def _attention_backward(args: Sequence[Any], _: bool) -> OpMemory:
    """The math path's backward holds two more matrices of the weights' size for a moment."""
    query, key, value = args[1:4]
    sizes = _Attention(query, key)
    dropout = float(args[6]) if len(args) > 6 else 0.0
    held = sizes.weights(sizes.itemsize) * (3 if dropout else 2) + sizes.full(value)
    results = sum(t.numel() * t.element_size() for t in (query, key, value))
    return OpMemory({}, max(held - results, 0))


class _Attention:
    """Bytes of one attention call; half precision is computed in float32 on the math path."""

    def __init__(self, query: Any, key: Any) -> None:
        self.batch, self.heads, self.queries = query.shape[0], query.shape[1], query.shape[2]
        self.keys = key.shape[2]
        self.itemsize = max(query.element_size(), 4)

    def weights(self, itemsize: int) -> int:
        return int(self.batch * self.heads * self.queries * self.keys * itemsize)

    def full(self, operand: Any) -> int:
        """Bytes of an operand repeated for every head, in the precision of the math path."""
        return int(self.batch * self.heads * operand.shape[2] * operand.shape[3] * self.itemsize)

    def copied(self, operand: Any) -> int:
        """Bytes of the copy that grouped-query attention makes of a key or value."""
        if operand.shape[1] == self.heads:
            return 0
        groups = self.heads // operand.shape[1]
        return int(operand.numel() * operand.element_size() * groups)

    @staticmethod
    def replaced(operand: Any, copy: int) -> int:
        """Bytes that a kept copy adds: less the original, where nothing else holds it.

        An operand that fills its storage alone is dropped once it is copied; one that is a part
        of a larger storage (a fused projection of query, key and value) lives on.
        """
        own = operand.numel() * operand.element_size()
        return int(copy - own if operand.untyped_storage().nbytes() <= own else copy)


def _lstm(args: Sequence[Any], grad: bool) -> OpMemory:
    """``mkldnn_rnn_layer(input, w0, w1, w2, w3, hx, cx, reverse, batch_sizes, mode, hidden, ...)``.

    ``_lstm_mps`` keeps for each layer the four gates, the cell states and the outputs of every
    time step for its backward pass, and only the outputs without one. oneDNN's workspace, the
    fourth result, stands for them.
    """
    source, hidden = args[0], int(args[10])
    steps = source.shape[0] * source.shape[1]
    return OpMemory({3: int(steps * hidden * source.element_size() * (6 if grad else 1))}, 0)


# Operator's name without namespace and overload -> its rule; other operators take their outputs.
RULES: Mapping[str, Rule] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "mkldnn_rnn_layer": _lstm,
}
