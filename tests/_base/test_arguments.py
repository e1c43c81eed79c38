"""A message about an argument is never an error itself."""

import pytest

import mpskit
from mpskit._base.arguments import check_count, shown, wrong_type
from mpskit.errors import MpskitError

HUGE = 10**5000


class Rude:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (15, "15"), ("15.6", "'15.6'"), (None, "None"), (-1.5, "-1.5"),
        (HUGE, "an int of 16610 bits"), (-HUGE, "an int of 16610 bits"),
        (Rude(), "an object of Rude"), ("x" * 500, "'xxx"), ([0] * 500, "[0, 0"),
    ],
    ids=range(9),
)  # fmt: skip
def test_shown(value, text):
    assert shown(value).startswith(text)
    assert len(shown(value)) < 410


@pytest.mark.parametrize("value", [HUGE, -HUGE, Rude()], ids=["huge", "negative", "rude"])
def test_the_errors_that_use_it(value):
    assert str(wrong_type("x", "a str", value)).startswith("x must be a str, got an ")
    with pytest.raises(MpskitError):
        check_count("x", -HUGE, least=1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("exponent", [400, 5000])
@pytest.mark.parametrize(
    "call",
    [
        lambda n: mpskit.memory_budget_for(n),
        lambda n: mpskit.memory_budget("cpu", reserve=n),
        lambda n: mpskit.limit_memory(n, "cpu"),
        lambda n: mpskit.MemoryMonitor("cpu", interval=n),
        lambda n: mpskit.CacheKeeper("cpu", above=n),
        lambda n: mpskit.run_with_batch_size(lambda size: size, n),
    ],
)
def test_an_integer_that_no_float_holds_and_nobody_can_print(call, exponent, sign):
    with pytest.raises(MpskitError):
        call(sign * 10**exponent)
