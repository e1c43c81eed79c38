"""What oneDNN's LSTM takes on the CPU: its workspace, kept for the backward pass, and scratch.

Sizes follow oneDNN's own layout (``src/cpu/rnn/rnn_utils.cpp``): leading dimensions are rounded up
to a cache line and moved off multiples of 256 elements; the workspace holds the gates of every
time step, and states of two layers and one step more than the sequence. The counts of arrays
were fitted to the allocations of torch 2.13 on x86-64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpskit.dispatch.mps_op_memory import OpMemory

__all__ = ["lstm_backward_memory", "lstm_memory"]

_PAGE = 4096
# Arrays of states: as wide as the wider of input and hidden state, and as wide as the hidden one.
_WIDE_ARRAYS = 6
_HIDDEN_ARRAYS = 5


def lstm_memory(args: Sequence[Any], _: bool) -> OpMemory:
    """``mkldnn_rnn_layer(input, w0, w1, w2, w3, hx, cx, reverse, batch_sizes, mode, size)``."""
    source, weight, hidden = args[0], args[1], int(args[10])
    steps, batch, width = source.shape
    itemsize = source.element_size()
    gates = _leading(4 * hidden, itemsize)
    workspace = _paged(steps * batch * gates * itemsize)
    states = (steps + 1) * batch
    # Cell and difference states stay in float32 in half precision.
    workspace += _WIDE_ARRAYS * _paged(states * _leading(max(width, hidden), itemsize) * itemsize)
    workspace += _HIDDEN_ARRAYS * _paged(states * hidden * 4)
    if not torch.is_grad_enabled():
        plain = 4 * hidden * (width + hidden) * itemsize
        return OpMemory({3: 0}, plain + _scratch(args[0], gates))
    return OpMemory({3: workspace}, _reordered(weight, hidden, gates) + _scratch(args[0], gates))


def lstm_backward_memory(args: Sequence[Any], _: bool) -> OpMemory:
    """``mkldnn_rnn_layer_backward(input, w1, w2, w3, w4, hx, cx, output, hy, cy, ...)``.

    The weights are copied transposed, their gradients are summed in a padded layout first.
    """
    source, weight = args[0], args[1]
    hidden = weight.shape[0] // 4
    gates = _leading(4 * hidden, source.element_size())
    turned = _leading(weight.shape[1], 4) + _leading(hidden, 4)
    scratch = 4 * hidden * turned * weight.element_size()
    return OpMemory({}, scratch + _reordered(weight, hidden, gates) + _scratch(source, gates))


def _reordered(weight: Any, hidden: int, gates: int) -> int:
    return int((weight.shape[1] + hidden) * gates * weight.element_size())


def _scratch(source: Any, gates: int) -> int:
    return int(source.shape[0] * source.shape[1] * gates * source.element_size())


def _leading(size: int, itemsize: int) -> int:
    line = 64 // itemsize
    rounded = -(-size // line) * line
    return rounded + line if rounded % 256 == 0 else rounded


def _paged(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
