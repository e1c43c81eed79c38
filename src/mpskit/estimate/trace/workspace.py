"""What CPU kernels take for themselves while they run, and give back: no dispatch shows it.

oneDNN copies the operands of a convolution into its own layout, the older kernels unfold them into
columns. The bytes differ by processor, so they are a small table that a script measures
(``benchmarks/make_cpu_workspace.py``), used for the CPU only and never for MPS or CUDA.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import torch

from mpskit.dispatch.mps_op_memory import OpMemory, Rule
from mpskit.estimate.trace.cpu_lstm import lstm_backward_memory, lstm_memory

__all__ = ["TERMS", "cpu_op_memory", "kernel_of", "sizes_of"]

# What a rule is a sum of: bytes of the operator's input, weight and result; of the copies of input
# and result whose channels are padded to whole blocks, as oneDNN's layout wants them (images of
# three channels at most are read as they are); and of the columns into which the kernels without
# oneDNN unfold the input.
TERMS = ("input", "weight", "output", "blocked_input", "read_input", "blocked_output", "columns")

_OPERATORS = ("convolution", "convolution_backward", "native_batch_norm_backward")
_PLAIN_CHANNELS = 3
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def cpu_op_memory() -> Mapping[str, Rule]:
    """Return the rules of the CPU by operator's name."""
    rules: dict[str, Rule] = {name: functools.partial(_memory, name) for name in _OPERATORS}
    rules["mkldnn_rnn_layer"] = lstm_memory
    rules["mkldnn_rnn_layer_backward"] = lstm_backward_memory
    return rules


def _memory(name: str, args: Sequence[Any], _: bool) -> OpMemory:
    stages = _table().get(kernel_of(name, args), ())
    sizes = sizes_of(name, args)
    totals = [sum(c * s for c, s in zip(stage, sizes, strict=True)) for stage in stages]
    copies = sum(_nbytes(operand) for operand in args[:3] if _scattered(operand))
    return OpMemory({}, max(totals, default=0) + copies)


def _scattered(operand: Any) -> bool:
    """Return whether a kernel has to copy an operand before it can start."""
    if not isinstance(operand, torch.Tensor) or operand.is_contiguous():
        return False
    return not _channels_last(operand)


@functools.cache
def _table() -> dict[str, list[tuple[int, ...]]]:
    text = resources.files("mpskit").joinpath("data/cpu_workspace.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    table: dict[str, list[tuple[int, ...]]] = {}
    for row in rows:
        table.setdefault(row["kernel"], []).append(tuple(int(row[term]) for term in TERMS))
    return table


def kernel_of(name: str, args: Sequence[Any]) -> str:
    """Return which kernel of the CPU takes a call, as the table names it."""
    if not name.startswith("convolution"):
        return name
    x, weight, tail = _operands(name, args)
    kind = _backend(x, weight, tail)
    if kind.startswith(("Mkldnn", "?")):  # the enum's Python face lacks MkldnnTranspose
        kind = "mkldnn-transposed" if tail[3] else "mkldnn"
        if tail[5] > 1 and weight.shape[1] == 1:
            kind += "-depthwise"
        if any(n > 1 for n in tail[0]):
            kind += "-strided"
        if _channels_last(x) or _channels_last(weight):
            kind += "-last"
        if x.dtype is not torch.float32:
            kind += "-half"
    return f"{name}:{kind}"


def sizes_of(name: str, args: Sequence[Any]) -> tuple[int, ...]:
    """Return the bytes of each of ``TERMS`` for a call."""
    if not name.startswith("convolution"):
        return (_nbytes(args[1]), 0, 0, 0, 0, 0, 0)
    x, weight, tail = _operands(name, args)
    output = _output_shape(x, weight, tail)
    itemsize = x.element_size()
    unfolded = x.shape if tail[3] else output
    columns = x.shape[0] * math.prod(weight.shape[1:]) * math.prod(unfolded[2:]) * itemsize
    if math.prod(weight.shape[2:]) == 1 and output[2:] == tuple(x.shape[2:]):
        columns = 0  # a pointwise convolution multiplies the input as it lies
    blocked = _blocked(x.shape) * itemsize
    read = blocked if x.shape[1] > _PLAIN_CHANNELS else 0
    result = math.prod(output) * itemsize
    return (
        _nbytes(x),
        _nbytes(weight),
        result,
        blocked,
        read,
        _blocked(output) * itemsize,
        columns,
    )


def _blocked(shape: Sequence[int]) -> int:
    """Return the elements of a tensor whose channels are padded to whole blocks."""
    block = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
    return int(math.prod(shape) // shape[1] * -(-shape[1] // block) * block)


def _operands(name: str, args: Sequence[Any]) -> tuple[Any, Any, Sequence[Any]]:
    """Return input, weight and (stride, padding, dilation, transposed, output padding, groups)."""
    first = 1 if name.endswith("backward") else 0
    return args[first], args[first + 1], args[first + 3 : first + 9]


def _backend(x: Any, weight: Any, tail: Sequence[Any]) -> str:
    stride, padding, dilation, transposed, out_padding, groups = tail
    choose = torch._C._select_conv_backend
    return str(
        choose(x, weight, None, stride, padding, dilation, transposed, out_padding, groups, None)
    ).rpartition(".")[2]


def _output_shape(x: Any, weight: Any, tail: Sequence[Any]) -> tuple[int, ...]:
    stride, padding, dilation, transposed, out_padding, groups = map(_listed, tail)
    dims = x.dim() - 2
    sizes = []
    for i in range(dims):
        n, k = x.shape[2 + i], weight.shape[2 + i]
        s, p, d = (values[i % len(values)] for values in (stride, padding, dilation))
        if transposed[0]:
            sizes.append((n - 1) * s - 2 * p + d * (k - 1) + out_padding[i % len(out_padding)] + 1)
        else:
            sizes.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
    channels = weight.shape[1] * groups[0] if transposed[0] else weight.shape[0]
    return (x.shape[0], channels, *sizes)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _channels_last(tensor: Any) -> bool:
    layout = _LAST.get(tensor.dim())
    if layout is None or tensor.is_contiguous():
        return False
    return bool(tensor.is_contiguous(memory_format=layout))


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
