import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, check_size, format_bytes, meant_otherwise, parse_bytes
from mpskit.errors import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GiB", 12 * GIB),
        ("12 GB", 12 * GIB),
        ("1.5g", GIB * 3 // 2),
        ("512 MiB", 512 * 1024**2),
        ("4kb", 4096),
        ("100", 100),
        ("100 bytes", 100),
        ("2T", 2 * 1024 * GIB),
        ("16gb", 16 * GIB),
        ("16 GB", 16 * GIB),
        ("1e9", 10**9),
        ("1.5E3 MiB", 1500 * 1024**2),
    ],
)
def test_sizes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1 parsec", "nan", "1e", "1e999", "80%", "9" * 400]
)
def test_no_sizes(text):
    with pytest.raises(ArgumentError, match="not a size") as caught:
        parse_bytes(text)
    assert caught.value.given == text


def test_a_number_is_a_type_error():
    with pytest.raises(ArgumentTypeError):
        parse_bytes(12)


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_an_argument_error(text):
    try:
        assert parse_bytes(text) >= 0
    except ArgumentError as error:
        assert error.given == text


@given(st.integers(0, 2**60))
def test_what_is_written_can_be_read(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.005)


@pytest.mark.parametrize(
    ("amount", "meant"),
    [
        (80, "'80%' or '80GiB'"),
        (" 16 ", "'16%' or '16GiB'"),
        (16384, "'16384MiB'"),
        (0, None),
        (2**20, None),
        ("12GiB", None),
        ("80B", None),
        ("80%", None),
        ("", None),
        (-5, None),
    ],
)
def test_a_small_number_without_a_unit_was_meant_otherwise(amount, meant):
    assert meant_otherwise(amount) == meant


@pytest.mark.parametrize(
    ("size", "error", "said"),
    [
        (16, ArgumentError, r"16 \* 2\*\*30"),
        (0, ArgumentError, "positive"),
        (10**400, ArgumentError, "more bytes"),
        (True, ArgumentTypeError, "an int of bytes"),
        ("16GiB", ArgumentTypeError, "an int of bytes"),
    ],
)
def test_what_is_no_number_of_bytes(size, error, said):
    with pytest.raises(error, match=said) as caught:
        check_size("ram_bytes", size)
    assert caught.value.given is size
