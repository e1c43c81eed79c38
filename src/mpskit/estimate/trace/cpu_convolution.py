"""What a convolution takes on an x86-64 CPU beyond its results while it runs: a range of bytes.

oneDNN copies operands into a layout of its own (channels in blocks of a vector, or last), computes
into such a copy, and may need scratch memory for each thread; torch allocates all of it. Kernels
without oneDNN unfold the input into columns. Which kernel oneDNN takes depends on the processor and
on the version: the likely one gives the low figure, the largest that may be taken the high one.

Sources: torch's ``aten/src/ATen/native/Convolution.cpp`` and the files of the kernels it names,
ideep's ``convolution_forward`` and ``convolution_backward_*``, oneDNN's
``cpu_convolution_list.cpp`` and ``gemm_convolution_utils.cpp``. Every formula was checked against
the allocations of torch 2.13 (``benchmarks/conv_workspace.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Conv", "Cpu", "Range", "column_backward", "column_forward", "onednn_backward"]
__all__ += ["onednn_forward"]

# oneDNN 3's limits, as measured. JIT kernels for the weights' gradient take no wider filter and no
# more padding; depthwise ones only a filter up to the third.
_WEIGHTS_FILTER = 14
_WEIGHTS_PADDING = 27
_DEPTHWISE_FILTER = 3
# With this many channels at most, JIT kernels read images as they lie.
_IMAGE_CHANNELS = 3
# The GEMM kernels share an image between threads from this many positions for each of them.
_SHARED_POSITIONS = 256
# They book the array that sums the weights' gradient by its bytes, in elements of 4 bytes.
_SUMS = 4
_SMALL = 512
# The second-level cache of one core, which bounds the columns of a forward pass.
_CACHE = 2 << 20
# Accumulators of a strided channels-last kernel, for each thread.
_STRIDED_BUFFER = 36_000
# Barriers and sums of the bias beside the copies of the weights' gradient, for each thread.
_REDUCTION = 4_200
# Widest block of channels, and tiles of a thread, in channels-last kernels.
_WIDE = 64
_TILES = 1 << 20
# Settings for which the first choice below was the right one wherever it was measured.
_COMMON_FILTER = 5
_COMMON_PADDING = 2


class Range(NamedTuple):
    """Bytes: what is likely, and what it can be at most."""

    low: int
    high: int


class Cpu(NamedTuple):
    """What of the CPU decides: float32 elements of a vector, and torch's threads."""

    vector: int
    threads: int


@dataclass(frozen=True)
class Conv:
    """A convolution between the image before its stride (``fine``) and after it (``coarse``).

    A transposed one computes ``fine`` from ``coarse``. All sequences have one number a dimension.

    Attributes:
        batch: images.
        fine: channels and sizes of one fine image.
        coarse: channels and sizes of one coarse image.
        itemsize: bytes of one element.
        last: channels come last in memory.
    """

    batch: int
    fine: tuple[int, ...]
    coarse: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    itemsize: int = 4
    last: bool = False

    @property
    def result(self) -> int:
        """Bytes of the result of the forward pass."""
        return self.image(self.fine if self.transposed else self.coarse)

    @property
    def source(self) -> int:
        """Bytes of the input."""
        return self.image(self.coarse if self.transposed else self.fine)

    @property
    def weight(self) -> int:
        """Bytes of the weight."""
        return self.filters(1)

    @property
    def columns(self) -> int:
        """Bytes of one image of one group, unfolded."""
        elements = self.fine[0] // self.groups * math.prod(self.kernel)
        return elements * math.prod(self.coarse[1:]) * self.itemsize

    @property
    def pointwise(self) -> bool:
        """Whether the unfolded image would be the image."""
        return max(*self.kernel, *self.stride) == 1 and max(self.padding) == 0

    @property
    def depthwise(self) -> bool:
        """Whether every channel has a filter of its own."""
        return 1 < self.groups == self.fine[0] == self.coarse[0]

    def image(self, side: tuple[int, ...], block: int = 1) -> int:
        """Return the bytes of all images of a side with channels in whole blocks."""
        return self.batch * self._blocks(side[0], block) * math.prod(side[1:]) * self.itemsize

    def filters(self, coarse: int, fine: int | None = None) -> int:
        """Return the bytes of the weight in whole blocks of coarse and of fine channels."""
        inner = self.fine[0] // self.groups
        if self.groups == 1:
            inner = _whole(inner, coarse if fine is None else fine)
        return self._blocks(self.coarse[0], coarse) * inner * math.prod(self.kernel) * self.itemsize

    def _blocks(self, channels: int, block: int) -> int:
        return _whole(channels, block) if self.groups == 1 or self.depthwise else channels


class _Kernel(NamedTuple):
    """What a kernel allocates: copies of what it reads, its result, scratch.

    ``result`` is 0 where it computes into torch's result; ``last`` says that its result has the
    channels last, which torch copies twice.
    """

    copies: int
    result: int
    scratch: int = 0
    last: bool = False


def onednn_forward(conv: Conv, cpu: Cpu) -> Range:
    """Return what ``convolution`` takes beyond its result through oneDNN."""
    kernels = (_to_fine if conv.transposed else _to_coarse)(conv, cpu)
    return _range(_taken(kernel, conv.result, conv.result) for kernel in kernels)


def onednn_backward(conv: Conv, cpu: Cpu, *, data: bool = True, weights: bool = True) -> Range:
    """Return what ``convolution_backward`` takes beyond the gradients that are asked for."""
    ranges = [Range(0, 0)]
    later = conv.weight if weights else 0
    if data:  # comes first, when the weight's gradient does not exist yet
        kernels = (_to_coarse if conv.transposed else _to_fine)(conv, cpu)
        ranges.append(
            _range(_taken(kernel, conv.source, conv.source) - later for kernel in kernels)
        )
    if weights:
        kernels = _to_weights(conv, cpu)
        ranges.append(_range(_taken(kernel, conv.weight, 0) for kernel in kernels))
    return Range(max(low for low, _ in ranges), max(high for _, high in ranges))


def _taken(kernel: _Kernel, result: int, copy: int) -> int:
    """Bytes beyond the result: before it is copied out of the kernel's layout, and while it is."""
    inside = kernel.copies + kernel.scratch
    if not kernel.result:
        return inside
    inside += kernel.result - result
    return max(inside, kernel.result + (copy if kernel.last else 0))


def _range(choices: Iterable[int]) -> Range:
    likely, *others = choices
    return Range(max(likely, 0), max(likely, *others, 0))


def _to_coarse(conv: Conv, cpu: Cpu) -> list[_Kernel]:
    """Kernels from fine to coarse: forward, or a transposed one's gradient of the input."""
    if conv.last or conv.itemsize < 4:
        return _channels_last(conv, cpu, conv.image(conv.fine), conv.image(conv.coarse))
    block = _block(conv, cpu)
    plain = conv.groups == 1 and conv.fine[0] < cpu.vector and (conv.fine[0] % 8 or cpu.vector > 8)
    fine = 0 if plain else conv.image(conv.fine, block)
    filters = conv.filters(block, 1 if plain else None)
    blocked = _Kernel(fine + filters, conv.image(conv.coarse, block))
    whole = _gemm(conv, cpu, conv.image(conv.coarse))
    gemm = [_gemm(conv, cpu, conv.image(conv.coarse), _cached_columns(conv)), whole]
    copies = conv.image(conv.fine) + conv.filters(cpu.vector)
    last = _Kernel(copies, conv.image(conv.coarse), last=True)
    if conv.depthwise and len(conv.kernel) == 3:
        return [*gemm, last, blocked] if max(conv.dilation) > 1 else [last, whole, blocked]
    if gathered := _gathered(conv):
        most = blocked._replace(scratch=cpu.threads * gathered + _SMALL)
        return [blocked, most, whole] if block else [*gemm, most]
    limit = _padding_limit(cpu, depthwise=conv.depthwise)
    fits = block > 0 and max(conv.padding) <= limit
    return _ordered(conv, [blocked, whole] if fits else [*gemm, blocked])


def _to_fine(conv: Conv, cpu: Cpu) -> list[_Kernel]:
    """Kernels from coarse to fine: the gradient of the input, or a transposed forward pass."""
    if conv.last or conv.itemsize < 4:
        return _channels_last(conv, cpu, conv.image(conv.coarse), conv.image(conv.fine))
    block = _block(conv, cpu)
    copies = conv.image(conv.coarse, block) + conv.filters(block)
    blocked = _Kernel(copies, conv.image(conv.fine, block))
    gemm = _gemm(conv, cpu, conv.image(conv.fine))
    if conv.depthwise:
        fits = len(conv.kernel) < 3 and max(conv.dilation) == 1
        return [blocked] if fits else [gemm, blocked]
    inner, outer = conv.fine[0] // conv.groups, conv.coarse[0] // conv.groups
    if max(conv.stride) > 1:
        likely, most = _strided(conv, cpu)
        if conv.groups == 1:
            return [likely, most]
        wide = block < 16 <= outer or min(inner, outer) > (8 if conv.transposed else 16)
        return [likely, most, blocked, gemm] if wide else [blocked, most, gemm]
    margins = zip(conv.dilation, conv.kernel, conv.padding, strict=True)
    padding = [d * (k - 1) - p for d, k, p in margins]
    limit = _padding_limit(cpu, back=True)
    fits = block > 0 and max(padding) <= limit and min(padding) >= 0
    return _ordered(conv, [blocked, gemm] if fits else [gemm, blocked])


def _to_weights(conv: Conv, cpu: Cpu) -> list[_Kernel]:
    """Kernels for the gradient of the weight."""
    if conv.last or conv.itemsize < 4:
        return _channels_last_to_weights(conv, cpu)
    few = conv.groups == 1 and conv.fine[0] < cpu.vector
    plain = few and conv.fine[0] <= _IMAGE_CHANNELS and max(conv.kernel) > 1
    block = _block(conv, cpu) or cpu.vector
    blocked = _blocked_to_weights(conv, cpu, 8 if few and not plain else block, plain=plain)
    if few:
        blocked += _blocked_to_weights(conv, cpu, block)
    gemm = _gemm_to_weights(conv, cpu)
    if not _weights_blocked(conv, cpu):
        return [*gemm, *blocked]
    return blocked if _common(conv) else [*blocked, *gemm]


def _blocked_to_weights(conv: Conv, cpu: Cpu, block: int, *, plain: bool = False) -> list[_Kernel]:
    """The same by blocks of channels; threads that share a weight sum it up in copies."""
    copies = conv.image(conv.coarse, block) + (0 if plain else conv.image(conv.fine, block))
    filters = conv.filters(block, 1 if plain else None)
    shared = cpu.threads * (filters + _REDUCTION) if cpu.threads > 1 else 0
    return [
        _Kernel(copies, filters),
        _Kernel(copies, filters, shared + cpu.threads * _gathered(conv)),
    ]


def _gathered(conv: Conv) -> int:
    """Return what a strided pointwise kernel may gather first: positions of one image."""
    if max(conv.kernel) > 1 or max(conv.stride) == 1:
        return 0
    return conv.fine[0] * math.prod(conv.coarse[1:]) * conv.itemsize


def _weights_blocked(conv: Conv, cpu: Cpu) -> bool:
    """Return whether the gradient of the weight is likely to be computed in blocks of channels."""
    volume, dilated, widest = len(conv.kernel) == 3, max(conv.dilation) > 1, max(conv.kernel)
    if conv.depthwise:
        return not volume and not dilated and widest <= _DEPTHWISE_FILTER and max(conv.padding) < 2
    if (
        widest > _WEIGHTS_FILTER
        or max(conv.padding) > _WEIGHTS_PADDING
        or (dilated and (volume or cpu.vector == 8))
    ):
        return False
    if conv.groups > 1:
        return _block(conv, cpu) >= 8
    if volume and cpu.vector == 8:
        return max(conv.padding) == 0
    return not volume or not _IMAGE_CHANNELS < conv.fine[0] < 16


def _strided(conv: Conv, cpu: Cpu) -> tuple[_Kernel, _Kernel]:
    """A channels-last kernel that gathers the strided positions of an image, for each thread."""
    padded = math.prod(n + 2 * ((k - 1) // s) for n, k, s in _sizes(conv))
    outer, positions = conv.coarse[0] * conv.itemsize, math.prod(conv.coarse[1:])
    image = max(padded * outer, positions * outer + _STRIDED_BUFFER)
    row = conv.stride[-1] * conv.fine[-1] * conv.fine[0] * conv.itemsize
    uneven = conv.fine[-1] % conv.stride[-1] != 0
    inner = _whole(conv.fine[0] // conv.groups, cpu.vector)
    wide = _whole(inner, 2 * cpu.vector)
    one = outer * math.prod(conv.kernel)  # the filters of one fine channel
    copies, result = conv.image(conv.coarse), conv.image(conv.fine)
    likely = cpu.threads * (image + (row if uneven else 0))
    most = cpu.threads * (padded * outer + row + 2 * _STRIDED_BUFFER)
    return (
        _Kernel(copies + inner * one, result, likely, last=True),
        _Kernel(copies + wide * one, result, most, last=True),
    )


def _channels_last(conv: Conv, cpu: Cpu, read: int, result: int) -> list[_Kernel]:
    """Kernels for tensors with their channels last, and for half precision, which copies to that.

    Which there are depends on the processor's instructions for half precision; their scratch
    memory is bounded by what was seen on one that has them all.
    """
    one, most = _dense_filters(conv, cpu)
    gathered = conv.stride[-1] * _dense_image(conv) if max(conv.stride) > 1 else 0
    if conv.last:
        each = 2 * _STRIDED_BUFFER + _slice(conv) + gathered
        return [_Kernel(one, 0), _Kernel(most + result, 0, cpu.threads * each)]
    each = _TILES + _slice(conv) + 3 * gathered
    return [
        _Kernel(read + one, result, last=True),
        _Kernel(read + most + 2 * result, result, cpu.threads * each, last=True),
    ]


def _channels_last_to_weights(conv: Conv, cpu: Cpu) -> list[_Kernel]:
    """The same for the gradient of the weight, which copies images once more to transpose them."""
    one, most = _dense_filters(conv, cpu)
    if conv.last:
        each = most + _slice(conv) + _SUMS * conv.weight + 2 * _STRIDED_BUFFER
        return [_Kernel(0, one), _Kernel(2 * conv.weight, most, cpu.threads * each)]
    read = conv.image(conv.fine) + conv.image(conv.coarse)
    even = conv.fine[0] % 16 == 0 and conv.coarse[0] % 16 == 0
    images = _dense_image(conv, both=True)
    turned = 0 if even else 2 * one + images * 6 // 5
    gathered = 3 * conv.stride[-1] * _dense_image(conv) if max(conv.stride) > 1 else 0
    each = _TILES + _slice(conv) + gathered + 4 * most + 2 * images
    return [
        _Kernel(read, one, cpu.threads * turned),
        _Kernel(read + most, most, cpu.threads * each),
    ]


def _dense_filters(conv: Conv, cpu: Cpu) -> tuple[int, int]:
    """Return the bytes of the weight with every group's channels in blocks: as usual, and wide."""
    inner, outer = conv.fine[0] // conv.groups, conv.coarse[0] // conv.groups
    taps = conv.groups * math.prod(conv.kernel) * conv.itemsize
    usual = taps * _whole(inner, cpu.vector) * _whole(outer, cpu.vector)
    wide = taps * _whole(inner, _WIDE if conv.groups == 1 else cpu.vector) * _whole(outer, _WIDE)
    return conv.filters(cpu.vector) if conv.depthwise else usual, wide


def _dense_image(conv: Conv, *, both: bool = False) -> int:
    """Return the bytes of the larger image (or of both), every group's channels in pairs of 16."""
    sizes = [
        (n if conv.depthwise else conv.groups * _whole(n // conv.groups, 32)) * math.prod(rest)
        for n, *rest in (conv.fine, conv.coarse)
    ]
    return (sum(sizes) if both else max(sizes)) * conv.itemsize


def _sizes(conv: Conv) -> Iterable[tuple[int, int, int]]:
    return zip(conv.coarse[1:], conv.kernel, conv.stride, strict=True)


def _gemm(conv: Conv, cpu: Cpu, result: int, columns: int | None = None) -> _Kernel:
    """A matrix product of unfolded images, one for each thread."""
    each = _slice(conv) if columns is None else columns
    return _Kernel(0, result, 0 if conv.pointwise else cpu.threads * each + _SMALL)


def _cached_columns(conv: Conv) -> int:
    """Return the columns of as many channels as fit a cache with their filters, in even parts."""
    channels = conv.fine[0] // conv.groups
    columns = _slice(conv) // channels
    filters = conv.coarse[0] // conv.groups * math.prod(conv.kernel) * conv.itemsize
    parts = -(-channels // max(_CACHE // (columns + filters), 1))
    return columns * -(-channels // parts)


def _gemm_to_weights(conv: Conv, cpu: Cpu) -> list[_Kernel]:
    positions = math.prod(conv.coarse[1:])
    shared = len(conv.kernel) < 3 and positions > _SHARED_POSITIONS * cpu.threads
    alone = shared or (conv.batch == 1 and conv.groups <= 2)
    columns = 0 if conv.pointwise else _slice(conv)
    each = columns + _SUMS * conv.weight
    return [_Kernel(0, conv.weight, n * each + _SMALL) for n in (1 if alone else cpu.threads,)] + [
        _Kernel(0, conv.weight, cpu.threads * each + _SMALL)
    ]


def _slice(conv: Conv) -> int:
    """Return the columns of one image of one group; a volume is unfolded slice by slice."""
    return conv.columns // (conv.coarse[1] if len(conv.kernel) == 3 else 1)


def _block(conv: Conv, cpu: Cpu) -> int:
    """Return how many channels a block has; 0 where groups do not divide into blocks."""
    if conv.groups == 1 or conv.depthwise:
        return cpu.vector
    inner, outer = conv.fine[0] // conv.groups, conv.coarse[0] // conv.groups
    blocks = (16, 8, 4) if cpu.vector == 16 else (8,)
    return next((b for b in blocks if inner % b == 0 and outer % b == 0), 0)


def _padding_limit(cpu: Cpu, *, depthwise: bool = False, back: bool = False) -> int:
    """Return the most padding that the blocked kernels take (as measured)."""
    if cpu.vector == 16:
        return 6 if depthwise else 14
    return 4 if depthwise else 7 if back else 3


def _common(conv: Conv) -> bool:
    """Return whether the choice of the kernel is beyond doubt."""
    plain = conv.groups == 1 and max(conv.dilation) == 1 and len(conv.kernel) < 3
    return plain and max(conv.kernel) <= _COMMON_FILTER and max(conv.padding) <= _COMMON_PADDING


def _ordered(conv: Conv, kernels: list[_Kernel]) -> list[_Kernel]:
    return kernels[:1] if _common(conv) else kernels


def _whole(count: int, block: int) -> int:
    return -(-count // block) * block if block else count


def column_forward(conv: Conv, kernel: str) -> int:
    """Return what a kernel without oneDNN takes beyond its result; torch names the kernel."""
    columns = _columns(conv, kernel)
    if conv.groups == 1 or kernel == "Slow3d":
        return columns
    one = conv.source // conv.groups if conv.batch > 1 else 0
    whole = conv.source if kernel == "SlowTranspose3d" else 0
    return max(conv.result, whole, one + columns)  # the groups' results are concatenated


def column_backward(conv: Conv, kernel: str, *, data: bool = True, weights: bool = True) -> int:
    """Return what the gradients of a kernel without oneDNN take beyond themselves."""
    columns = _columns(conv, kernel)
    if conv.groups > 1 and kernel != "Slow3d":
        one = (conv.source + conv.result) // conv.groups if conv.batch > 1 else 0
        return max(conv.source * data + conv.weight * weights, one + columns)
    if kernel == "Slow3d" and data and not columns:  # a copy of the gradient, before the weight's
        return max(conv.source - conv.weight * weights, 0)
    return 0 if conv.pointwise and conv.groups == 1 else columns


def _columns(conv: Conv, kernel: str) -> int:
    """Return the bytes of what one call unfolds: all images, or one after the other."""
    if kernel == "Slow3d":
        return 0 if conv.pointwise and conv.groups == 1 else conv.batch * conv.groups * conv.columns
    if kernel == "Slow2d":
        return 0 if conv.pointwise else conv.batch * conv.columns
    return conv.columns * (conv.batch if kernel == "SlowTranspose2d" else 1)
