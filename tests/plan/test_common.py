"""What the user has decided, and the fields that every plan has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.plan.made_up import GIB, job

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.plan.common import common_fields, decided
from mpskit.plan.places import find_place
from mpskit.plan.search import Search
from mpskit.plan.settings import Setting, ways

ALLOWED = ("precision", "base", "batch_size")


@pytest.mark.parametrize(
    ("fixed", "named", "expected"),
    [
        (None, {}, {}),
        ({"batch_size": 2}, {"batch_size": None}, {"batch_size": 2}),
        ({"batch_size": 2}, {"batch_size": 2}, {"batch_size": 2}),
        (None, {"batch_size": 3}, {"batch_size": 3}),
        ({"precision": torch.bfloat16}, {}, {"precision": "bf16"}),
        ({"base": "nf4"}, {}, {"base": "nf4"}),
        ({"base": None}, {}, {"base": None}),
    ],
)
def test_what_is_decided(fixed: Any, named: dict[str, Any], expected: dict[str, Any]) -> None:
    before = dict(fixed or {})
    assert decided(fixed, ALLOWED, **named) == expected
    assert (fixed or {}) == before


@pytest.mark.parametrize(
    ("fixed", "named", "error", "said"),
    [
        ([], {}, ArgumentTypeError, "mapping"),
        ({"rank": 3}, {}, ArgumentError, "one of precision, base, batch_size, not 'rank'"),
        ({"batch_size": 2}, {"batch_size": 3}, ArgumentError, "is 3 and fixed as 2"),
        ({"precision": "fp3"}, {}, ArgumentError, "fp3"),
        ({"base": "int3"}, {}, ArgumentError, "base is one of bf16"),
    ],
)
def test_what_cannot_be(
    fixed: Any, named: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        decided(fixed, ALLOWED, **named)


def fields(usable: int, **asked: Any) -> dict[str, Any]:
    """Return the fields of a plan of a model that needs 4 GiB, or half with a smaller base."""

    def size(setting: Setting) -> int:
        return 4 * GIB * (setting.seq_len or 1) // 512 // (2 if setting.base else 1)

    model = job(size, lengths=(512,))
    place = replace(find_place("m1-16gb"), usable_bytes=usable)
    first = Setting(rank=8, seq_len=512)
    every = ways(first, half="bf16", mixed="bf16-mixed", half_rate=1.0, quantized=("nf4",))
    search = Search(model.estimates, usable, (1,), 1)
    taken = search.best(every, model.lengths)
    return common_fields(model, place, search, taken, search.beside(every, taken), **asked)


def test_the_fields_of_what_fits() -> None:
    found = fields(8 * GIB)
    assert (found["verdict"], found["needed_bytes"]) == ("fits", 4 * GIB)
    assert (found["model"], found["machine"], found["device"]) == ("made-up", "m1-16gb", "mps")
    assert (found["precision"], found["weights_dtype"]) == ("fp32", "float32")
    assert (found["autocast_dtype"], found["quantization"]) == (None, None)
    assert [one.words for one in found["compared"] if one.chosen] == ["fp32"]
    assert len(found["compared"]) == 8
    assert found["would_fit"] == ()


def test_a_base_is_what_the_weights_are_stored_in() -> None:
    found = fields(3 * GIB)
    assert (found["weights_dtype"], found["quantization"]) == ("bfloat16", None)
    assert found["verdict"] == "fits"


@pytest.mark.parametrize("usable", [2 * GIB + GIB // 50, GIB])
def test_what_would_fit_is_looked_for_where_it_does_not_quite(usable: int) -> None:
    found = fields(usable)
    assert found["verdict"] == ("does-not-fit" if usable == GIB else "tight")
    assert found["would_fit"]
    assert fields(usable, advise=False)["would_fit"] == ()
