"""Amounts of memory as people give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, MIB
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.memory.amounts import amount_bytes, share_of

WHOLE = 16 * GIB


@pytest.mark.parametrize(
    ("amount", "size"),
    [
        (0, 0),
        (2**20, 2**20),
        (2**60, 2**60),
        (2**63, 2**63),
        (0.0, 0),
        (0.5, 8 * GIB),
        (1.0, WHOLE),
        ("50%", 8 * GIB),
        (" 12.5 % ", 2 * GIB),
        ("100%", WHOLE),
        (".5%", WHOLE // 200),
        ("2GiB", 2 * GIB),
        ("2 gb", 2 * GIB),
        ("512 MiB", 512 * MIB),
        ("1e9", 10**9),
        ("80 bytes", 80),
    ],
)
def test_an_amount(amount, size):
    assert amount_bytes(amount, WHOLE, "reserve") == size


@pytest.mark.parametrize(
    "amount", [-1, 2**63 + 1, -0.1, 1.1, float("nan"), float("inf"), "101%", "-1%", "%", "", "x"]
)
def test_what_is_no_amount_is_refused_with_the_input(amount):
    with pytest.raises(ArgumentError) as caught:
        amount_bytes(amount, WHOLE, "reserve")
    assert caught.value.given is amount


@pytest.mark.parametrize("amount", [None, True, b"1", [1], object()])
def test_a_wrong_type_is_refused_by_name(amount):
    with pytest.raises(ArgumentTypeError, match="reserve must be bytes") as caught:
        amount_bytes(amount, WHOLE, "reserve")
    assert caught.value.given is amount


@pytest.mark.parametrize("amount", [80, "80", " 80 ", 1000])
def test_a_bare_number_is_asked_for_its_unit(amount):
    with pytest.raises(ArgumentError, match="did you mean") as caught:
        amount_bytes(amount, WHOLE, "limit")
    assert caught.value.given is amount


def test_a_share_is_told_from_a_size():
    assert [share_of(amount) for amount in ("80%", 0.25, "2GiB", 3)] == [0.8, 0.25, None, None]


@given(st.one_of(st.text(), st.floats(), st.integers()), st.integers(0, 2**50))
def test_there_is_always_an_amount_or_a_typed_error(amount, whole):
    try:
        size = amount_bytes(amount, whole, "limit")
    except (ArgumentError, ArgumentTypeError) as error:
        assert error.given is amount
    else:
        assert size >= 0
        assert share_of(amount) is None or size <= whole
