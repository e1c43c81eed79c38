"""What oneDNN's LSTM takes on the CPU: its workspace, kept for the backward pass, and scratch.

Sizes follow oneDNN's own layout (``set_workspace_sizes`` and ``set_offsets`` of
``src/cpu/rnn/rnn_utils``): every array begins on a page, and leading dimensions are rounded up to a
cache line and moved off multiples of 256 elements. In float32 they equal the allocations of torch
2.6 and 2.15 on x86-64 to within a page in training.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch

from mpskit.backends.versions import within
from mpskit.dispatch.mps_op_memory import OpMemory

__all__ = ["lstm_backward_memory", "lstm_memory"]

_PAGE = 4096
_POINTERS = _PAGE  # to weights and biases, and what aligns them
# Before it the states were reserved three times over, and scratch was booked once more in elements
# whose number was already one of bytes (oneDNN's commit d3fb569917).
_LEAN = "3.9"


def lstm_memory(args: Sequence[Any], _: bool) -> OpMemory:
    """``mkldnn_rnn_layer(input, w0, w1, w2, w3, hx, cx, reverse, batch_sizes, mode, size)``."""
    source, weight, hidden = args[0], args[1], int(args[10])
    steps, batch, width = source.shape
    itemsize = source.element_size()
    states = 2 * (steps + 1) * batch
    wide = states * _leading(max(width, hidden), itemsize) * itemsize
    cells = _paged(states * hidden * itemsize)
    layers = _paged(wide) * (1 if _lean() else 3)
    if not torch.is_grad_enabled():
        plain = 4 * hidden * (width + hidden) * itemsize
        scratch = _scratch(steps, batch, hidden, itemsize, training=False)
        return OpMemory({3: 0}, plain + layers + cells + scratch)
    gates = _leading(4 * hidden, itemsize)
    rows = steps * batch
    workspace = _paged(rows * gates * itemsize)
    workspace += _paged(rows * _leading(hidden, itemsize) * itemsize)
    workspace += layers + cells
    # The differences are in float32, whatever the dtype.
    workspace += 2 * _paged(states * _leading(max(width, hidden), 4) * 4)
    workspace += _paged(states * hidden * 4)
    scratch = _scratch(steps, batch, hidden, itemsize, training=True)
    return OpMemory({3: workspace}, _reordered(weight, hidden, gates) + scratch)


def lstm_backward_memory(args: Sequence[Any], _: bool) -> OpMemory:
    """``mkldnn_rnn_layer_backward(input, w1, w2, w3, w4, hx, cx, output, hy, cy, ...)``.

    The weights are copied transposed. Their gradients are summed in float32 and a padded layout,
    apart from the results if these are laid out in another way.
    """
    source, weight = args[0], args[1]
    steps, batch, _width = source.shape
    hidden, itemsize = weight.shape[0] // 4, source.element_size()
    gates = _leading(4 * hidden, itemsize)
    padded = sum(
        4 * hidden * _leading(size, 4) * 4
        for size in (weight.shape[1], hidden)
        if itemsize != 4 or _leading(size, 4) != size
    )
    scratch = _scratch(steps, batch, hidden, itemsize, training=True)
    return OpMemory({}, padded + _reordered(weight, hidden, gates) + scratch)


def _reordered(weight: Any, hidden: int, gates: int) -> int:
    return int((weight.shape[1] + hidden) * gates * weight.element_size())


def _scratch(steps: int, batch: int, hidden: int, itemsize: int, *, training: bool) -> int:
    """Return the gates, one hidden state, and in training its difference.

    Training in float32 multiplies all steps at once; the other kernels go step by step.
    """
    together = steps if training and itemsize == 4 else 1
    gates = together * batch * _leading(4 * hidden, itemsize) * itemsize
    state = batch * _leading(hidden, itemsize) * itemsize
    difference = batch * _leading(hidden, 4) * 4 if training else 0
    twice = 0 if _lean() else (gates + state) * itemsize + difference * 4
    return _paged(gates) + _paged(state) + _paged(difference) + twice + _POINTERS


@functools.cache
def _lean() -> bool:
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return within(found[1] if found else None, _LEAN)


def _leading(size: int, itemsize: int) -> int:
    line = 64 // itemsize
    rounded = -(-size // line) * line
    return rounded + line if rounded % 256 == 0 else rounded


def _paged(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
