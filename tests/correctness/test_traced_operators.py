"""Known bugs by a model's own operators, and what the trace sees of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mpskit import TensorSpec, known_issues
from mpskit.correctness.operators import CONDITIONS, Operand, OpUse
from mpskit.correctness.traced_operators import operators_of
from mpskit.errors import EstimateError
from mpskit.host import Host
from mpskit.host.machines import Machine

pytestmark = pytest.mark.needs_torch("estimate")


class Calls(nn.Module):
    """A model of one function."""

    def __init__(self, call, *sizes, training=True):
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.ones(*sizes or (1,)))
        self.train(training)

    def forward(self, *inputs):
        return self.call(self.weight, *inputs)


def keys(model, batch, torch_version="2.12.1", chip="M5", macos="26.2"):
    mac = Host.from_readings(Machine(chip=chip, ram_gib=16, macos=macos).readings())
    return {one.key for one in known_issues(mac, torch_version, model=model, batch=batch)}


def attend(w, q, **how):
    return functional.scaled_dot_product_attention(q * w.to(q.dtype), q, q, **how)


HALF = torch.float16
# key, a model and batch that meet the bug, and a change of either that does not
MET = [
    (
        "sdpa-causal-half",
        (Calls(lambda w, q: attend(w, q, is_causal=True)), TensorSpec((1, 2, 8, 8), HALF)),
        (Calls(lambda w, q: attend(w, q, is_causal=True)), TensorSpec((1, 2, 8, 8))),
    ),
    (
        "sdpa-causal-half",
        (Calls(lambda w, q: attend(w, q, is_causal=True)), TensorSpec((1, 2, 8, 8), HALF)),
        (Calls(attend), TensorSpec((1, 2, 8, 8), HALF)),
    ),
    (
        "linear-half-m5",
        (nn.Linear(4, 4, bias=False, dtype=HALF), TensorSpec((2, 3, 4), HALF)),
        (nn.Linear(4, 4, bias=False, dtype=HALF), TensorSpec((3, 4), HALF)),
    ),
    (
        "linear-half-m5",
        (nn.Linear(4, 4, bias=False, dtype=HALF), TensorSpec((2, 3, 4), HALF)),
        (nn.Linear(4, 4, dtype=HALF), TensorSpec((2, 3, 4), HALF)),
    ),
    (
        "linear-half-backward-m5",
        (nn.Linear(4, 4, dtype=HALF), TensorSpec((2, 3, 4), HALF)),
        (nn.Linear(4, 4, dtype=HALF).eval(), TensorSpec((2, 3, 4), HALF)),
    ),
    (
        "lstm-dropout-backward",
        (nn.LSTM(4, 4, num_layers=2, dropout=0.5), torch.ones(3, 2, 4)),
        (nn.LSTM(4, 4, num_layers=2), torch.ones(3, 2, 4)),
    ),
    (
        "lstm-dropout-eval",
        (nn.LSTM(4, 4, num_layers=2, dropout=0.5).eval(), torch.ones(3, 2, 4)),
        (nn.LSTM(4, 4, dropout=0.0), torch.ones(3, 2, 4)),
    ),
    (
        "layer-norm-frozen-input",
        (nn.Sequential(nn.LayerNorm(4)), torch.ones(2, 4)),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.ones(2, 4)),
    ),
    (
        "linear-bias-large-batch",
        (nn.Linear(4, 4), TensorSpec((65537, 2, 4))),
        (nn.Linear(4, 4), TensorSpec((65536, 2, 4))),
    ),
    (
        "conv2d-non-contiguous-weight",
        (
            Calls(lambda w, x: functional.conv2d(x, w[:, :, 1]), 3, 4, 3, 3, 3),
            torch.ones(1, 4, 8, 8),
        ),
        (nn.Conv2d(4, 3, 3), torch.ones(1, 4, 8, 8)),
    ),
    (
        "channels-last-slice",
        (Calls(lambda w, x: functional.avg_pool2d((x * w)[:, :1], 2)), torch.ones(2, 3, 4, 4)),
        (Calls(lambda w, x: functional.avg_pool2d(x * w, 2)), torch.ones(2, 3, 4, 4)),
    ),
    (
        "conv2d-kernel-256",
        (nn.Conv2d(1, 1, (1, 256)), torch.ones(2, 1, 1, 300)),
        (nn.Conv2d(1, 1, (1, 255)), torch.ones(2, 1, 1, 300)),
    ),
    (
        "conv-backward-large-batch",
        (nn.Conv1d(1, 1, 1), TensorSpec((65536, 1, 1))),
        (nn.Conv1d(1, 1, 1), TensorSpec((65535, 1, 1))),
    ),
    (
        "conv3d-macos-26-2",
        (nn.Conv3d(1, 1, 3), torch.ones(1, 1, 4, 4, 4)),
        (nn.Conv2d(1, 1, 3), torch.ones(1, 1, 4, 4)),
    ),
    (
        "grid-sample-3d-grid",
        (
            Calls(
                lambda w, x, g: functional.grid_sample(
                    x * w, g.permute(0, 2, 3, 4, 1), align_corners=False
                )
            ),
            (TensorSpec((1, 1, 4, 4, 4)), TensorSpec((1, 3, 4, 4, 4))),
        ),
        (
            Calls(lambda w, x, g: functional.grid_sample(x * w, g, align_corners=False)),
            (TensorSpec((1, 1, 4, 4, 4)), TensorSpec((1, 4, 4, 4, 3))),
        ),
    ),
    (
        "scan-above-4d",
        (Calls(lambda w, x: (x * w).cumsum(0)), torch.ones(1, 1, 1, 1, 2)),
        (Calls(lambda w, x: (x * w).cumsum(0)), torch.ones(1, 1, 1, 2)),
    ),
    (
        "gradients-large-linear",
        (nn.Linear(4, 40_000), torch.ones(2, 4)),
        (nn.Linear(4, 4_000), torch.ones(2, 4)),
    ),
    (
        "linear-transposed-bf16-macos-27",
        (
            Calls(lambda w, x: functional.linear(x, w.bfloat16().t()), 4, 3),
            TensorSpec((2, 2, 4), torch.bfloat16),
        ),
        (nn.Linear(4, 3, dtype=torch.bfloat16), TensorSpec((2, 2, 4), torch.bfloat16)),
    ),
]


@pytest.mark.parametrize(("key", "meets", "other"), MET, ids=[row[0] for row in MET])
def test_a_bug_is_told_to_the_models_that_meet_it(key, meets, other):
    macos = "27.0" if key.endswith("27") else "26.2"
    assert key in keys(*meets, macos=macos)
    assert key not in keys(*other, macos=macos)


@pytest.mark.parametrize("rows", [32_766, 32_767])
def test_gradients_over_many_rows_are_long_products(rows):
    found = keys(nn.Linear(4, 4), TensorSpec((rows, 4)), chip="M1")
    assert ("matmul-long-inner-2d" in found) is (rows == 32_767)


def test_a_plain_model_on_a_new_torch_meets_little():
    found = keys(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4), "2.15.0", "M4", "27")
    assert found == set()


def test_the_model_is_left_as_it_was():
    model = nn.Linear(4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert operators_of(model, torch.ones(2, 4)) == operators_of(model, torch.ones(2, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.weight.grad is None
    assert functional.linear is torch._C._nn.linear


def test_a_step_that_fails_is_an_estimate_error():
    with pytest.raises(EstimateError):
        keys(nn.Linear(4, 4), torch.ones(2, 5))


def operand(shape, strides=None, dtype="float32", grad=False):
    expected = torch.empty(shape, device="meta").stride()
    return Operand(shape, strides or expected, dtype, 4, grad)


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((1, 3), (7, 1), True),
        ((0, 3), (9, 9), True),
        ((), (), True),
        ((2, 3), (0, 1), False),
    ],
)
def test_contiguous_as_torch_says(shape, strides, contiguous):
    assert operand(shape, strides).contiguous is contiguous
    real = torch.empty(64).as_strided(shape, strides)
    assert real.is_contiguous() is contiguous


@pytest.mark.parametrize(
    ("name", "value", "use", "holds"),
    [
        ("result_above", 11, OpUse("bmm", (operand((2, 2, 9)), operand((2, 9, 3)))), True),
        ("result_above", 40, OpUse("bmm", (operand((2, 2, 1)), operand((2, 1, 9)))), False),
        ("numel_above", 5, OpUse("cat", (operand((2, 3)),)), True),
        ("bytes_above", 24, OpUse("cat", (operand((2, 3)),)), False),
        ("expanded", True, OpUse("mm", (operand((2, 3), (0, 1)), operand((3, 3)))), True),
        ("expanded", True, OpUse("mm", (operand((1, 3), (0, 1)), operand((3, 3)))), False),
        ("grouped_queries", True, OpUse("x", (operand((1, 4, 2, 2)), operand((1, 2, 2, 2)))), True),
        ("keys_not_multiple_of", 32, OpUse("x", (None, operand((1, 2, 33, 2)))), True),
        ("keys_not_multiple_of", 32, OpUse("x", (None, operand((1, 2, 64, 2)))), False),
        ("masked", True, OpUse("x", (None, None, None, operand((2, 2)))), True),
        ("non_blocking", True, OpUse("to", (), (("non_blocking", True),)), True),
        ("compiled", True, OpUse("layer_norm", ()), False),
        ("columns_above", 5, OpUse("sort", (operand((2, 6)),)), True),
        ("inner_from", 5, OpUse("mm", ()), False),
        ("rank_from", 1, OpUse("mm", ()), False),
    ],
)
def test_conditions(name, value, use, holds):
    assert CONDITIONS[name](use, value) is holds
