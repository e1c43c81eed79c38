"""What convolutions take on the CPU: rules against allocations measured with torch 2.13."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.estimate.trace.cpu_convolution import (
    Conv,
    Cpu,
    column_backward,
    column_forward,
    onednn_backward,
    onednn_forward,
)


def conv1d(batch, channels, sizes, kernel, stride=1, padding=0, **options):
    """A convolution of one dimension, as torch computes it: in two."""
    fine, coarse = ((c, 1, n) for c, n in zip(channels, sizes, strict=True))
    rest = ((1, kernel), (1, stride), (0, padding), (1, options.pop("dilation", 1)))
    return Conv(batch, fine, coarse, *rest, **options)


def square(batch, channels, sizes, kernel, stride=1, padding=0, dims=2, **options):
    fine, coarse = ((c, *[n] * dims) for c, n in zip(channels, sizes, strict=True))
    rest = ((n,) * dims for n in (kernel, stride, padding, options.pop("dilation", 1)))
    return Conv(batch, fine, coarse, *rest, **options)


# Bytes measured beyond the results, forward and backward, by floats of a vector (16 with AVX-512, 8
# for the same processor held to AVX2) and threads.
MEASURED = {
    "in blocks": (
        square(4, (64, 96), (28, 28), 3, 1, 1),
        {(v, n): (1_204_224, 2_007_040) for v in (8, 16) for n in (1, 2)},
    ),
    "its input's gradient with channels last": (
        conv1d(2, (512, 512), (8000, 3999), 3, 2),
        {(v, n): (35_913_728, 62_390_272) for v in (8, 16) for n in (1, 2)},
    ),
    "wav2vec2's positions, by GEMM": (
        conv1d(2, (768, 768), (249, 250), 128, 1, 64, groups=16),
        {
            (8, 1): (1_536_128, 81_641_728),
            (16, 1): (1_536_128, 81_641_728),
            (16, 2): (3_072_128, 163_283_200),
        },
    ),
    "dilated": (
        square(4, (128, 128), (28, 28), 3, 1, 2, dilation=2),
        {(8, 2): (2_195_456, 5_972_224), (16, 1): (2_195_456, 3_211_264)},
    ),
    "Mamba's, depthwise": (
        conv1d(2, (512, 512), (64, 67), 4, 1, 3, groups=512),
        {(8, 1): (274_432, 274_432), (16, 2): (274_432, 274_432)},
    ),
    "ConvNeXt's, depthwise": (
        square(4, (96, 96), (28, 28), 7, 1, 3, groups=96),
        {(8, 2): (1_223_040, 1_204_224), (16, 1): (1_223_040, 1_204_224)},
    ),
    "groups in blocks": (
        square(4, (128, 128), (28, 28), 3, 1, 1, groups=8),
        {(8, 1): (1_679_360, 3_211_264), (16, 2): (1_679_360, 3_211_264)},
    ),
    "transposed, strided": (
        conv1d(2, (128, 256), (8000, 1000), 16, 8, 4, transposed=True),
        {(8, 1): (16_384_000, 16_580_992), (16, 2): (16_384_000, 16_580_992)},
    ),
    "volume": (
        square(2, (16, 32), (16, 16), 3, 1, 1, dims=3),
        {(16, 1): (1_048_576, 1_572_864), (16, 2): (1_048_576, 1_636_608)},
    ),
    "first layer": (
        square(4, (3, 64), (64, 32), 7, 2, 3),
        {(8, 1): (1_048_576, 1_459_480), (16, 1): (1_048_576, 1_559_832)},
    ),
}
CASES = [
    pytest.param(conv, Cpu(*cpu), *bytes_, id=f"{name} {cpu}")
    for name, (conv, found) in MEASURED.items()
    for cpu, bytes_ in found.items()
]


@pytest.mark.parametrize(("conv", "cpu", "forward", "backward"), CASES)
def test_the_range_holds_what_was_measured(conv, cpu, forward, backward):
    own = conv.source + conv.weight + conv.result
    for found, measured in (
        (onednn_forward(conv, cpu), forward),
        (onednn_backward(conv, cpu), backward),
    ):
        assert found.low == pytest.approx(measured, abs=0.03 * (own + measured))
        assert found.high >= measured


@pytest.mark.parametrize(
    ("kernel", "conv", "forward", "backward"),
    [
        # 16 channels x 27 taps of every position, of all images
        (
            "Slow3d",
            square(1, (16, 32), (16, 16), 3, 1, 1, dims=3),
            16 * 27 * 16**3 * 4,
            16 * 27 * 16**3 * 4,
        ),
        # pointwise: nothing is unfolded, but the gradient of the input is computed into a copy
        ("Slow3d", square(1, (48, 32), (31, 31), 1, dims=3), 0, 48 * 31**3 * 4 - 48 * 32 * 4),
        ("Slow2d", square(1, (3, 384), (50, 23), 5, 2), 3 * 25 * 23 * 23 * 4, 3 * 25 * 23 * 23 * 4),
        ("Slow2d", square(1, (128, 256), (12, 12), 1), 0, 0),
        # the groups' results are concatenated
        ("Slow2d", square(2, (128, 128), (10, 10), 1, groups=4), 102_400, 102_400 + 128 * 32 * 4),
        (
            "SlowTranspose2d",
            square(3, (192, 128), (11, 11), 1, transposed=True),
            3 * 192 * 121 * 4,
            0,
        ),
    ],
)
def test_kernels_that_unfold(kernel, conv, forward, backward):
    assert column_forward(conv, kernel) == forward
    assert column_backward(conv, kernel) == backward


def test_a_frozen_side_takes_less():
    conv = square(4, (64, 96), (28, 28), 3, 1, 1)
    both = onednn_backward(conv, Cpu(16, 1))
    only_weights = onednn_backward(conv, Cpu(16, 1), data=False)
    only_data = onednn_backward(conv, Cpu(16, 1), weights=False)
    assert only_weights.low <= both.low
    assert only_data.low == max(conv.result + conv.weight, conv.source)
    assert onednn_backward(conv, Cpu(16, 1), data=False, weights=False) == (0, 0)


def test_half_precision_and_channels_last_are_wide_ranges():
    plain = square(4, (64, 96), (28, 28), 3, 1, 1)
    for options in ({"itemsize": 2}, {"last": True}):
        conv = square(4, (64, 96), (28, 28), 3, 1, 1, **options)
        for find in (onednn_forward, onednn_backward):
            low, high = find(conv, Cpu(16, 2))
            assert 0 <= low < high
    assert onednn_forward(plain, Cpu(16, 1)).low == onednn_forward(plain, Cpu(16, 1)).high


def number(*values):
    return st.sampled_from(values)


@st.composite
def convolutions(draw):
    dims, groups = draw(number(2, 3)), draw(number(1, 2, 8))
    inner, outer = draw(number(1, 3, 8, 16, 24)) * groups, draw(number(1, 4, 16, 48)) * groups
    kernel, stride, dilation = draw(number(1, 2, 3, 7)), draw(number(1, 2, 4)), draw(number(1, 2))
    padding = draw(number(0, kernel // 2))
    size = draw(st.integers(4, 40)) + dilation * kernel
    coarse = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return square(
        draw(number(1, 2, 8)),
        (inner, outer),
        (size, coarse),
        kernel,
        stride,
        padding,
        dims,
        dilation=dilation,
        groups=groups,
        transposed=draw(st.booleans()),
        itemsize=draw(number(2, 4)),
        last=draw(st.booleans()),
    )


@given(convolutions(), number(8, 16), st.integers(1, 8))
def test_ranges_are_ranges_and_grow_with_threads(conv, vector, threads):
    for find in (onednn_forward, onednn_backward):
        low, high = find(conv, Cpu(vector, threads))
        assert 0 <= low <= high
        assert find(conv, Cpu(vector, threads + 1)).high >= high
