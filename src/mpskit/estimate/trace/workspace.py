"""What CPU kernels take for themselves while they run, and give back: no dispatch shows it.

oneDNN copies the operands of a convolution into its own layout, the older kernels unfold them into
columns, and products in half precision pack their operands. The bytes differ by processor and by
threads, so a rule gives a range. The rules are used for the CPU only, never for MPS or CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mpskit.dispatch.mps_op_memory import OpMemory, Rule
from mpskit.estimate.trace.cpu_convolution import (
    Conv,
    Cpu,
    Range,
    column_backward,
    column_forward,
    onednn_backward,
    onednn_forward,
)
from mpskit.estimate.trace.cpu_lstm import lstm_backward_memory, lstm_memory

__all__ = ["cpu_op_memory"]

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_HALF = frozenset({torch.bfloat16, torch.float16})
# The most that a product in half precision packed for each thread, measured with AMX.
_PACKED = 9 << 18
_PACKED_SMALL = 1 << 16


_UPSAMPLED = (
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_trilinear3d",
)
# Up to this sum of the output's height, width and depth the kernel for channels-last tensors runs
# (_use_vectorized_kernel_cond_2d and _3d of UpSampleKernel.cpp).
_SMALL_OUTPUT = 128


def cpu_op_memory() -> Mapping[str, Rule]:
    """Return the rules of the CPU by operator's name."""
    return {
        "convolution": _convolution,
        "convolution_backward": _convolution_backward,
        "native_batch_norm_backward": _batch_norm_backward,
        "mkldnn_rnn_layer": lstm_memory,
        "mkldnn_rnn_layer_backward": lstm_backward_memory,
        **dict.fromkeys(_UPSAMPLED, _upsample),
        **dict.fromkeys(("mm", "bmm"), _product),
        **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    }


def _upsample(args: Sequence[Any], _: bool) -> OpMemory:
    """``upsample_*(input, sizes, ...)``: small outputs are computed in channels-last copies."""
    source, sizes = args[0], args[1]
    last = source.is_contiguous(memory_format=_LAST[source.dim()])
    if last or sum(sizes) > _SMALL_OUTPUT:
        return OpMemory()
    numel = source.numel() + math.prod((*source.shape[:2], *sizes))
    return OpMemory(workspace_bytes=numel * source.element_size())


def _convolution(args: Sequence[Any], _: bool) -> OpMemory:
    """``convolution(input, weight, bias, stride, padding, dilation, transposed, ...)``."""
    conv, kernel, copied = _described(args[0], args[1], args[3:9])
    if kernel is None:
        return _memory(onednn_forward(conv, _cpu()), copied)
    taken = column_forward(conv, kernel)
    return _memory(Range(taken, taken), copied)


def _convolution_backward(args: Sequence[Any], _: bool) -> OpMemory:
    """``convolution_backward(grad, input, weight, bias_sizes, stride, ..., output_mask)``."""
    conv, kernel, copied = _described(args[1], args[2], args[4:10])
    data, weights = bool(args[10][0]), bool(args[10][1] or args[10][2])
    copied += _nbytes(args[0]) if _scattered(args[0]) else 0
    if kernel is None:
        return _memory(onednn_backward(conv, _cpu(), data=data, weights=weights), copied)
    taken = column_backward(conv, kernel, data=data, weights=weights)
    return _memory(Range(taken, taken), copied)


def _batch_norm_backward(args: Sequence[Any], _: bool) -> OpMemory:
    return OpMemory({}, _nbytes(args[1]))


def _product(args: Sequence[Any], _: bool) -> OpMemory:
    """``mm(self, mat2)``: oneDNN packs panels of both operands in half precision, or does not."""
    left, right = args[0], args[1]
    if left.dtype not in _HALF:
        return OpMemory()
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    elements = rows * inner + inner * columns + rows * columns
    packed = min(_PACKED, 4 * elements * left.element_size() + _PACKED_SMALL)
    return OpMemory({}, 0, torch.get_num_threads() * packed)


def _added_product(args: Sequence[Any], grad: bool) -> OpMemory:
    """``addmm(self, mat1, mat2)``."""
    return _product(args[1:], grad)


def _memory(taken: Range, copied: int) -> OpMemory:
    return OpMemory({}, taken.low + copied, taken.high + copied)


def _cpu() -> Cpu:
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return Cpu(16 if wide else 8, torch.get_num_threads())


def _described(x: Any, weight: Any, tail: Sequence[Any]) -> tuple[Conv, str | None, int]:
    """Return the convolution, torch's kernel (None for oneDNN), and bytes of copies made first."""
    kernel: str | None = _backend(x, weight, tail)
    if kernel is not None and kernel.startswith(("Mkldnn", "?")):
        kernel = None  # the enum's Python face lacks MkldnnTranspose
    last = _channels_last(x) or _channels_last(weight)
    one_image = kernel is not None and kernel != "Slow2d"  # needs everything contiguous
    copied = sum(
        _nbytes(operand)
        for operand in (x, weight)
        if _scattered(operand)
        or (one_image and not operand.is_contiguous())
        or (kernel is None and last and not _channels_last(operand))
    )
    return _conv(x, weight, tail, last=last), kernel, copied


def _conv(x: Any, weight: Any, tail: Sequence[Any], *, last: bool) -> Conv:
    dims = x.dim() - 2
    stride, padding, dilation, out_padding = (
        [values[i % len(values)] for i in range(dims)]
        for values in map(_listed, (*tail[:3], tail[4]))
    )
    transposed, groups = bool(tail[3]), int(tail[5])
    kernel, sizes = [int(n) for n in weight.shape[2:]], [int(n) for n in x.shape[2:]]
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    steps = zip(sizes, stride, reach, out_padding, strict=True)
    if transposed:
        other = [(n - 1) * s + r + extra for n, s, r, extra in steps]
        sides = [weight.shape[1] * groups, *other], [x.shape[1], *sizes]
    else:
        other = [(n - r) // s + 1 for n, s, r, _ in steps]
        sides = [x.shape[1], *sizes], [weight.shape[0], *other]
    if dims == 1:  # torch computes it in two dimensions
        for values in (kernel, stride, dilation):
            values.insert(0, 1)
        padding.insert(0, 0)
        for side in sides:
            side.insert(1, 1)
    fine, coarse = (tuple(int(n) for n in side) for side in sides)
    return Conv(
        batch=int(x.shape[0]),
        fine=fine,
        coarse=coarse,
        kernel=tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        transposed=transposed,
        itemsize=x.element_size(),
        last=last,
    )


def _backend(x: Any, weight: Any, tail: Sequence[Any]) -> str:
    stride, padding, dilation, transposed, out_padding, groups = tail
    choose = torch._C._select_conv_backend
    return str(
        choose(x, weight, None, stride, padding, dilation, transposed, out_padding, groups, None)
    ).rpartition(".")[2]


def _scattered(operand: Any) -> bool:
    """Return whether a kernel has to copy an operand before it can start."""
    if not isinstance(operand, torch.Tensor) or operand.is_contiguous():
        return False
    return not _channels_last(operand)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _channels_last(tensor: Any) -> bool:
    layout = _LAST.get(tensor.dim())
    if layout is None or tensor.is_contiguous():
        return False
    return bool(tensor.is_contiguous(memory_format=layout))


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
