"""Shapes as text and as values."""

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate import TensorSpec
from mpskit.estimate.specs import map_tensors, parse_spec

# Five of the largest in the widest dtype: just under 2**63 bytes.
SIZES = st.lists(st.integers(0, 4_000), max_size=5)
DTYPES = st.sampled_from(["int64", "float32", "bool", "bfloat16", "complex64", "float8_e4m3fn"])


@given(SIZES, DTYPES, st.integers(-5, 5))
def test_a_text_is_read_back(sizes, dtype, fill):
    text = f"{dtype}[{','.join(map(str, sizes))}]={fill}"
    assert parse_spec(text) == TensorSpec(tuple(sizes), dtype, fill)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int64",
        "int64[a]",
        "[3]",
        "int64[3",
        "int65[3]",
        "float32[-1]",
        "int64[1 2]",
        "int64[1,,2]",
        "int64[,]",
        "int64[\u0661]",
        "int64[" + "9" * 5000 + "]",
        "int64[1]=" + "9" * 5000,
    ],
    ids=range(13),
)
def test_a_text_that_names_no_tensor(text):
    with pytest.raises(ArgumentError):
        parse_spec(text)


@given(st.text())
def test_any_text_is_a_spec_or_a_typed_error(text):
    try:
        assert isinstance(parse_spec(text), TensorSpec)
    except ArgumentError:
        pass


def test_every_nesting_is_kept():
    class Pair(NamedTuple):
        a: object
        b: object

    @dataclass
    class Item:
        x: torch.Tensor
        name: str = "kept"

    spec = TensorSpec((2,))
    value = {"a": [spec, (spec, 3)], "b": Pair(spec, None), "c": Item(spec), "d": UserDict(e=spec)}
    found = map_tensors(value, lambda _: "T")
    assert found == {"a": ["T", ("T", 3)], "b": Pair("T", None), "c": Item("T"), "d": {"e": "T"}}


@pytest.mark.parametrize("shape", [(1.5,), (-1,), (True,)])
def test_a_shape_that_is_none(shape):
    with pytest.raises(ArgumentError):
        TensorSpec(shape)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (((3),), ArgumentTypeError, "shape must be a sequence of ints"),
        (("12",), ArgumentTypeError, "shape must be a sequence of ints"),
        (((2,), "int12"), ArgumentError, "torch has no dtype 'int12'"),
        (((2,), "int64", "x"), ArgumentTypeError, "fill must be an int"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_when_it_is_described(given, error, said):
    with pytest.raises(error, match=said):
        TensorSpec(*given)
