"""What operators add up to: launches, arithmetic, bytes and classes."""

import pytest
import torch

from mpskit._base.data import read_toml
from mpskit.dispatch.intercept import intercepting
from mpskit.dispatch.op_counts import OpCounts, class_of
from mpskit.speed.count import _Counter


def counted(step) -> OpCounts:
    counter = _Counter()
    with intercepting(counter), torch.no_grad():
        step()
    return counter.counts


X = torch.ones(8, 16)
HALF = torch.ones(8, 16, dtype=torch.float16)
SCALAR, ONE = torch.tensor(1.0), torch.ones(1)
IMAGE = torch.ones(1, 4, 8, 8)


@pytest.mark.parametrize(
    ("step", "launches", "flops", "moved"),
    [
        (lambda: X + X, 1, 128, 3 * 512),
        (lambda: X @ X.T, 1, 2 * 8 * 16 * 8, 2 * 512 + 256),
        (lambda: X.view(16, 8), 0, 0, 0),
        (lambda: X.t(), 0, 0, 0),
        (lambda: torch.empty(8), 0, 0, 0),
        (lambda: X.sum(), 1, 128, 512 + 4),
        (lambda: X.add_(0), 1, 128, 2 * 512),
        (lambda: HALF + HALF, 1, 128, 3 * 256),
        (lambda: SCALAR + SCALAR, 0, 0, 0),
        (lambda: ONE.expand(8, 16) + X, 1, 128, 4 + 2 * 512),
    ],
    ids=["add", "mm", "view", "t", "empty", "sum", "add_", "half", "host scalars", "expanded"],
)
def test_one_operator(step, launches, flops, moved):
    found = counted(step)
    assert (found.launches, found.flops, found.bytes_moved) == (launches, flops, moved)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mm", "gemm"),
        ("addmm", "gemm"),
        ("convolution", "conv"),
        ("_softmax", "softmax"),
        ("native_layer_norm", "norm"),
        ("add_", "elementwise"),
        ("an_operator_of_next_year", "elementwise"),
    ],
)
def test_the_class_of_an_operator(name, kind):
    assert class_of(name) == kind


def test_depthwise_convolutions_are_told_apart():
    weight, deep = torch.ones(4, 4, 3, 3), torch.ones(4, 1, 3, 3)
    assert counted(lambda: torch.conv2d(IMAGE, weight)).depthwise == 0
    assert counted(lambda: torch.conv2d(IMAGE, deep, groups=4)).depthwise == 1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_the_backward_pass_of_a_convolution_takes_twice_the_forward_pass(kind, groups):
    layer = kind(4, 8, 3, groups=groups, bias=False)
    image = torch.ones(1, 4, 6, 6, requires_grad=True)
    forward = counted(lambda: layer(image)).flops_by_class["conv"]

    def train():
        with torch.enable_grad():
            layer(image).sum().backward()

    assert counted(train).flops_by_class["conv"] == 3 * forward


def test_arithmetic_is_kept_by_dtype_and_class():
    found = counted(lambda: (X @ X.T, HALF + HALF))
    assert found.flops_by_dtype["float32"] == found.flops_by_class["gemm"] == 2048
    assert found.flops_by_dtype["float16"] == found.flops_by_class["elementwise"] == 128
    assert found.launches_by_class == {"gemm": 1, "elementwise": 1}


def test_sums_of_counts():
    one, other = counted(lambda: X @ X.T), counted(lambda: HALF + HALF)
    both = one.plus(other, 3)
    assert both.launches == 4
    assert both.flops == one.flops + 3 * other.flops
    assert both.launches_by_class == {"gemm": 1, "elementwise": 3}
    assert one.launches_by_class == {"gemm": 1}
    assert both.plus(other, -3).flops_by_dtype == one.flops_by_dtype | {"float16": 0}


def test_every_operator_of_the_table_stands_in_one_class_and_is_known_to_torch():
    table = read_toml("op_classes.toml")
    names = [name for listed in table["classes"].values() for name in listed]
    assert len(set(names)) == len(names)
    known = {s.name.removeprefix("aten::") for s in torch._C._jit_get_all_schemas()}
    if "_fused_rms_norm_backward" not in known:
        pytest.skip("an older torch lacks the newest operators of the table")
    assert set(names) <= known


@pytest.mark.parametrize("training", [True, False])
def test_a_fused_recurrent_layer_multiplies_in_each_time_step(training):
    """By 4 gates of 16 numbers each, and twice as much backward."""
    layer, x, counter = torch.nn.LSTM(8, 16), torch.ones(5, 3, 8), _Counter()
    with intercepting(counter), torch.set_grad_enabled(training):
        result = layer(x)[0]
        if training:
            result.sum().backward()
    forward = 2.0 * 5 * 3 * (8 + 16) * 4 * 16
    assert counter.counts.flops_by_class["rnn"] == forward * (3 if training else 1)
    assert counter.counts.launches_by_class["rnn"] == 5 * (2 if training else 1)


def test_rows_that_are_looked_up_are_moved_alone():
    rows = torch.tensor([1, 2])
    found = counted(lambda: torch.nn.functional.embedding(rows, torch.zeros(1000, 16)))
    assert found.bytes_moved - 4 * 1000 * 16 == 2 * (2 * 16 * 4)  # the table is filled first
