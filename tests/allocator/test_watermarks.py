"""The variables as torch reads them: one reader for what is explained and what is simulated."""

from __future__ import annotations

import ctypes
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpskit
from mpskit.allocator.watermarks import (
    FALLBACK,
    HIGH,
    LOW,
    Watermarks,
    int_problem,
    read_int,
    read_ratio,
    read_watermarks,
)
from mpskit.environment.rules import judge
from mpskit.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.5", 1.5),
        ("  .5x", 0.5),
        ("1e-1", 0.1),
        ("+2", 2.0),
        ("0x1p0", 1.0),
        ("0x.8", 0.5),
        ("0x10 ", 16.0),
        ("0x", 0.0),
        ("0x1p99999", math.inf),
        ("-infinity", -math.inf),
        ("x1", None),
        ("", None),
    ],
)
def test_ratios_are_read_as_c_reads_them(text: str, number: float | None) -> None:
    assert read_ratio(text) == number


@pytest.mark.skipif(os.name != "posix", reason="asks the C library of this system")
@given(st.text(alphabet="0123456789abcdefinty.xXpPeE+- \t", max_size=12) | st.floats().map(str))
def test_the_c_library_reads_the_same_ratio(text: str) -> None:
    strtod = ctypes.CDLL(None).strtod
    strtod.restype, strtod.argtypes = ctypes.c_double, (ctypes.c_char_p, ctypes.c_void_p)
    expected, found = strtod(text.encode(), None), read_ratio(text) or 0.0
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize(
    ("text", "number", "problem"),
    [
        ("12", 12, None),
        (" 1abc", 1, None),
        ("-3", -3, None),
        ("0.9", 0, None),
        ("0" * 30 + "1", 1, None),
        ("-2147483648", -(2**31), None),
        ("2147483647", 2**31 - 1, None),
        ("2147483648", None, "is out of an int's range"),
        ("99999999999", None, "is out of an int's range"),
        ("9" * 5000, None, "is out of an int's range"),
        ("x", None, "is not a number"),
        ("+", None, "is not a number"),
        ("", None, "is not a number"),
    ],
)
def test_ints_are_read_as_stoi_reads_them(
    text: str, number: int | None, problem: str | None
) -> None:
    assert (read_int(text), int_problem(text)) == (number, problem)


@given(st.text(alphabet="0123456789+- x", max_size=14))
def test_an_int_that_is_read_has_no_problem(text: str) -> None:
    assert (read_int(text) is None) == (int_problem(text) is not None)


@pytest.mark.parametrize(
    ("environ", "watermarks"),
    [
        ({}, Watermarks(1.7, 1.4)),
        ({HIGH: "0x1p0", LOW: "0x.8"}, Watermarks(1.0, 0.5)),
        ({HIGH: "garbage"}, Watermarks(0.0, 1.4)),
        ({HIGH: "inf"}, Watermarks(math.inf, 1.4)),
    ],
)
def test_the_pair_that_the_allocator_starts_with(environ, watermarks: Watermarks) -> None:
    assert read_watermarks(environ) == watermarks


# One table for the three that look at the variable: the explanation, the budget, the allocator.
@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("0x1p0", 1.0),
        ("0X.Cp1", 1.5),
        ("1.5e0", 1.5),
        ("inf", None),
        ("Infinity", None),
        ("nan", None),
    ],
)
def test_explanation_budget_and_simulated_allocator_agree(
    monkeypatch: pytest.MonkeyPatch, text: str, ratio: float | None
) -> None:
    import torch

    monkeypatch.setenv(HIGH, text)
    monkeypatch.setenv(LOW, "0.1")
    effect = judge(HIGH, os.environ, torch.__version__).effect
    with mpskit.simulate("m1-8gb"):
        if ratio is None:
            assert effect == "an error"
            refusal = f"invalid high watermark ratio {text[:3].lower()}"
            with pytest.raises(RuntimeError, match=refusal):
                torch.zeros(1, device="mps")
            with pytest.raises(RuntimeError, match=refusal):
                mpskit.memory_budget("mps")
            return
        assert effect == f"a limit of {ratio:g} times the recommended working set"
        budget = mpskit.memory_budget("mps")
        assert budget.limit_bytes == int(ratio * budget.recommended_bytes)
        quarter = budget.limit_bytes // 4
        held = [torch.empty(quarter, dtype=torch.int8, device="mps") for _ in range(3)]
        with pytest.raises(RuntimeError, match="max allowed"):
            held += [torch.empty(quarter, dtype=torch.int8, device="mps") for _ in range(2)]


@pytest.mark.parametrize("text", ["99999999999", "2147483648", "true", ""])
def test_an_int_that_stoi_refuses_stops_the_simulated_mac(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(FALLBACK, text)
    assert judge(FALLBACK, os.environ, None).effect == "an error"
    with pytest.raises(SettingsError, match=FALLBACK), mpskit.simulate("m1-8gb"):
        pass
