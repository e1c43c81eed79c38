"""What counts as rounding, and copies that keep every stride."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpskit.correctness.comparing import (
    allowed_error,
    compare,
    exact_copy,
    least_scale,
    map_args,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("got", "same", "exact", "wrong"),
    [
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], False),
        ([1.0, 2.1], [1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.1], [1.0, 2.01], [1.0, 2.0], False),  # the CPU is a tenth as far off
        ([1.0, 2.2], [1.0, 2.01], [1.0, 2.0], True),
        ([1.0, NAN], [1.0, 2.0], [1.0, 2.0], True),
        ([1.0, NAN], [1.0, NAN], [1.0, NAN], False),
        ([1.0, 2.0], [1.0, INF], [1.0, 2.0], False),  # the CPU overflowed, the device did not
        ([INF], [3.0], [3.0], True),
        ([1.0], [1.0, 2.0], [1.0, 2.0], True),
        ([], [], [], False),
        ([0.0], [0.0], [0.0], False),
        ([1, 2], [1, 2], [1, 2], False),
        ([1, 3], [1, 2], [1, 2], True),
    ],
)
def test_rounding_or_not(got, same, exact, wrong):
    double = torch.tensor(exact)
    double = double.double() if double.is_floating_point() else double
    found = compare(torch.tensor(got), torch.tensor(same), double, rounding=1e-6)
    assert found.wrong is wrong


def test_what_cancels_is_compared_with_what_it_came_from():
    left, nothing = torch.tensor([1e-7]), torch.zeros(1)
    assert compare(left, nothing, nothing.double(), rounding=1e-6).wrong
    assert not compare(left, nothing, nothing.double(), rounding=1e-6, scale=1.0).wrong
    assert least_scale("sub", (torch.tensor([5.0, INF]), torch.tensor([2]))) == pytest.approx(0.05)
    assert least_scale("mm", (torch.tensor([5.0]),)) == 0
    assert least_scale("sub", (torch.tensor([INF]),)) == 0


def test_more_is_allowed_where_more_is_summed_and_with_fewer_bits():
    def allowed(inner, dtype=torch.float32, op="mm", device="mps"):
        args = torch.ones(2, inner, dtype=dtype), torch.ones(inner, 3, dtype=dtype)
        return allowed_error(op, args, torch.ones(2, 3, dtype=dtype), device)

    assert allowed(1) < allowed(64) < allowed(4096) < 1e-4
    assert allowed(64) < allowed(64, torch.float16) < allowed(64, torch.bfloat16) < 0.1
    assert allowed(4096, torch.float16) < 0.01
    image, weight = torch.ones(1, 3, 9, 9), torch.ones(4, 3, 3, 3)
    result = torch.ones(1, 4, 7, 7)
    on_mps = allowed_error("convolution", (image, weight), result, "mps")
    assert on_mps < 1e-4 < allowed_error("convolution", (image, weight), result, "cuda") < 0.01
    assert allowed_error("sum", (torch.ones(10_000),), torch.ones(()), "mps") < 1e-4


@st.composite
def strided(draw):
    """A view of a larger tensor, sliced, permuted, expanded."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    base = torch.arange(math.prod(sizes) * 2.0).reshape(*sizes, 2)
    view = base[..., draw(st.integers(0, 1))] if draw(st.booleans()) else base
    view = view.permute(draw(st.permutations(range(view.dim()))))
    if draw(st.booleans()):
        view = view[draw(st.integers(0, 1)) :]
    return view.unsqueeze(0).expand(3, *view.shape) if draw(st.booleans()) else view


@given(strided())
def test_a_copy_has_the_values_and_strides_and_shares_nothing(view):
    copied = exact_copy(view)
    assert torch.equal(copied, view)
    if view.numel():
        assert copied.stride() == view.stride()
        assert copied.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()


def test_a_far_reaching_view_is_copied_without_what_lies_between():
    wide = torch.zeros(1000, 1000)[:, 0]
    assert exact_copy(wide).untyped_storage().nbytes() == 4000
    assert torch.equal(exact_copy(torch.tensor([1 + 2j]).conj()), torch.tensor([1 - 2j]))


def test_arguments_are_changed_in_their_containers():
    one, two = torch.ones(1), torch.ones(2)
    doubled = map_args(([one, None], {"b": two}, 3), lambda t: t * 2)
    assert doubled[0][0].item() == 2
    assert doubled[1]["b"].tolist() == [2, 2]
    assert doubled[2] == 3
