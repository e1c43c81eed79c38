"""assert_close: tolerances by device and dtype, and messages that say where and why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.testing import assert_close, tolerance_for


@pytest.mark.parametrize(
    ("device", "dtype", "coarser_than_cpu"),
    [
        ("mps", "float32", True),
        ("mps", "float16", True),
        ("mps", "bfloat16", True),
        ("cuda", "float32", True),
        ("cuda", "float64", False),
        ("xpu", "float32", True),
    ],
)
def test_tolerances_are_wider_where_sums_are_ordered_otherwise(device, dtype, coarser_than_cpu):
    there, here = tolerance_for(device, dtype), tolerance_for("cpu", dtype)
    assert (there.rtol > here.rtol) is coarser_than_cpu


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8"])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_whole_numbers_are_exact(device, dtype):
    assert tolerance_for(device, dtype).rtol == tolerance_for(device, dtype).atol == 0


def test_a_dtype_without_a_row_uses_a_coarser_one():
    assert tolerance_for("mps", "float64") == tolerance_for("mps", "float32")
    assert tolerance_for("mps", "float8_e4m3fn") == tolerance_for("mps", "bfloat16")


def test_the_device_decides_what_is_close():
    expected = torch.ones(100)
    actual = expected * (1 + 5e-5)
    assert_close(actual, expected, "mps")
    with pytest.raises(AssertionError):
        assert_close(actual, expected, "cpu")
    with pytest.raises(AssertionError):
        assert_close(expected * (1 + 1e-3), expected, "mps")


def test_the_message_says_where_what_and_how_far():
    with pytest.raises(AssertionError) as caught:
        assert_close(
            {"a": [torch.zeros(2), torch.ones(3)]}, {"a": [torch.zeros(2), torch.zeros(3)]}, "mps"
        )
    text = str(caught.value)
    assert "['a'][1] on mps" in text
    assert "float32, rtol 0.0001, atol 1e-05" in text
    assert "Mismatched elements: 3 / 3" in text


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.ones(2), np.ones(2, dtype=np.float32)),
        (torch.ones(2), [1.0, 1.0]),
        (1.0, torch.tensor(1.0)),
        (1, torch.tensor(1.0)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2, dtype=torch.float16), torch.ones(2)),
        ((torch.ones(2), {"x": 3}), [torch.ones(2), {"x": 3}]),
        (torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 2j])),
    ],
)
def test_what_is_equal_passes(actual, expected):
    assert_close(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, dtype=torch.int64)),
        (torch.tensor([1]), torch.tensor([2])),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
        ({"a": 1}, {"b": 1}),
        (torch.tensor(math.nan), torch.tensor(1.0)),
    ],
)
def test_what_differs_fails(actual, expected):
    with pytest.raises(AssertionError):
        assert_close(actual, expected, "mps")


def test_half_against_float32_is_judged_as_half():
    expected = torch.linspace(0.5, 2, 100)
    assert_close(expected.half(), expected, "mps")


def test_own_tolerances_replace_the_table():
    assert_close(torch.tensor(1.5), torch.tensor(1.0), rtol=0.5)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor(1.000001), torch.tensor(1.0), "mps", rtol=0, atol=0)


@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf])
def test_a_tolerance_nobody_can_use(bad):
    with pytest.raises(ArgumentError) as caught:
        assert_close(1.0, 1.0, rtol=bad)
    assert caught.value.given is bad


@pytest.mark.parametrize("bad", ["1e-3", True])
def test_a_tolerance_of_the_wrong_type(bad):
    with pytest.raises(ArgumentTypeError):
        assert_close(1.0, 1.0, atol=bad)


def test_values_and_devices_nobody_can_compare():
    with pytest.raises(ArgumentTypeError, match="must be a tensor"):
        assert_close("text", 1.0)
    with pytest.raises(ArgumentError):
        assert_close(1.0, 1.0, "toaster")
    with pytest.raises(ArgumentTypeError):
        tolerance_for(3, "float32")


@given(st.lists(st.floats(width=32, allow_nan=True), max_size=20))
def test_every_tensor_is_close_to_itself(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    assert_close(tensor, tensor.clone(), "mps")
    assert_close({"x": [tensor]}, {"x": (tensor.clone(),)})
