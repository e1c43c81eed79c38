"""What a workload accepts, and what it refuses with which error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.speed import Workload

FIELDS = (
    "flops", "bytes_moved", "launches", "params", "peak_bytes", "dtype", "op_class", "training",
    "cpu_seconds", "torch_version",
)  # fmt: skip


def test_every_field_is_optional():
    assert tuple(Workload.model_fields) == FIELDS
    assert set(Workload().model_dump().values()) == {None}
    assert str(Workload()) == "workload: nothing known"


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Workload().flops = 1.0


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [
        (torch.bfloat16, "bfloat16"),
        ("torch.float16", "float16"),
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("float32", "float32"),
        ("float8_e4m3fn", "float8_e4m3fn"),
        (None, None),
    ],
)
def test_dtype(given_dtype, kept):
    assert Workload(dtype=given_dtype).dtype == kept


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("flops", -1),
        ("flops", math.nan),
        ("bytes_moved", math.inf),
        ("launches", -0.5),
        ("params", -1),
        ("params", 0.5),
        ("cpu_seconds", 0),
        ("cpu_seconds", -1e-3),
        ("op_class", ""),
        ("torch_version", ""),
        ("dtype", ""),
        ("flop", 1),
    ],
)
def test_impossible_values(fact, value):
    with pytest.raises(ArgumentError, match=rf"Workload\.{fact}: ") as caught:
        Workload(**{fact: value})
    assert caught.value.given is value or caught.value.given == value


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("flops", "12"),
        ("launches", True),
        ("params", b"1"),
        ("peak_bytes", [1]),
        ("cpu_seconds", torch.nn.ReLU()),
        ("op_class", 3),
        ("dtype", 16),
        ("torch_version", 2.13),
        ("training", "yes"),
    ],
)
def test_wrong_types(fact, value):
    with pytest.raises(ArgumentTypeError) as caught:
        Workload(**{fact: value})
    assert caught.value.given is value or caught.value.given == value


@given(
    st.builds(
        Workload,
        flops=st.none() | st.floats(0, 1e18),
        launches=st.none() | st.integers(0, 10**6),
        op_class=st.none() | st.sampled_from(["gemm", "rnn", "unheard of"]),
        cpu_seconds=st.none() | st.floats(1e-9, 1e4),
        training=st.none() | st.booleans(),
    )
)
def test_json_round_trip(workload):
    assert Workload.model_validate_json(workload.model_dump_json()) == workload
    assert hash(workload) == hash(workload.model_copy())


def test_str_names_what_is_known():
    assert str(Workload(launches=3, op_class="rnn")) == "workload: launches=3.0, op_class=rnn"
