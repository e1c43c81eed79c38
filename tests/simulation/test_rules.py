"""Which dtypes MPS refuses, and in which words, by torch and macOS."""

import pytest
import torch

from mpskit.simulation.rules import dtype_refusal, in_kernel

MADE = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
USED = (
    "Cannot convert a float64 Tensor to MPS as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
UNKNOWN = "Trying to convert {} to the MPS backend but it does not have support for that dtype."
OLD_BF16 = "BFloat16 is not supported on MPS"
NEW_BF16 = "MPS BFloat16 is only supported on MacOS 14 or newer"
COMPLEX = "MPS complex types are only supported on MacOS 14.0 or newer."


@pytest.mark.parametrize(
    ("name", "version", "macos", "text"),
    [
        ("float64", "2.2.2", "13.6", MADE),
        ("float64", "2.15.0", "26.1", MADE),
        ("complex128", "2.13.0", "15.6", UNKNOWN.format("ComplexDouble")),
        ("bfloat16", "2.2.2", "14.5", OLD_BF16),
        ("bfloat16", "2.8.0", "13.6", NEW_BF16),
        ("bfloat16", "2.8.0", "14.0", None),
        ("bfloat16", "2.9.1", "14.0", None),
        ("complex64", "2.8.0", "13.6", COMPLEX),
        ("complex64", "2.8.0", "14.0", None),
        ("complex64", "2.13.0", "15.6", None),
        ("float8_e4m3fn", "2.14.1", "15.6", UNKNOWN.format("Float8_e4m3fn")),
        ("float8_e4m3fn", "2.15.0", "15.6", None),
        ("float8_e5m2", "2.15.0", "26.0", UNKNOWN.format("Float8_e5m2")),
        ("float32", "2.6.0", "13.6", None),
        ("float16", "2.6.0", "13.6", None),
        ("int64", "2.13.0", "15.6", None),
        ("uint16", "2.13.0", "15.6", None),
        ("uint64", "2.13.0", "15.6", None),
        ("bool", "2.13.0", "15.6", None),
    ],
)
def test_refusal(name, version, macos, text):
    dtype = getattr(torch, name)
    error = dtype_refusal(dtype, torch_version=version, macos=macos)
    if text is None:
        assert error is None
    else:
        assert type(error) is TypeError
        assert str(error) == text


def test_a_kernel_that_meets_a_cpu_tensor_says_it_differently():
    error = in_kernel(torch.float64, torch_version="2.13.0", macos="15.6")
    assert str(error) == USED
    assert in_kernel(torch.float32, torch_version="2.13.0", macos="15.6") is None
    other = in_kernel(torch.complex128, torch_version="2.13.0", macos="15.6")
    assert str(other) == UNKNOWN.format("ComplexDouble")
