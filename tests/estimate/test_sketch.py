"""Autograd on sizes, by sequences small enough to follow by hand."""

from __future__ import annotations

import gc

import pytest

from mpskit.estimate.repeat_layers import SKETCHED, Step, unroll
from mpskit.estimate.sketch import Param, Sketch, Var


def peak(sizes: list[int], events: list[int]) -> tuple[int, int]:
    """Return the peak and what is left."""
    live = most = 0
    for event in events:
        live += sizes[event] if event >= 0 else -sizes[~event]
        most = max(most, live)
    return most, live


def test_a_product_keeps_both_and_frees_them_in_the_backward_pass() -> None:
    s = Sketch()
    weight = Param(100, 4)
    x = Var(s.new(400), 100, 4)
    y = s.product(x, weight.var)
    z = s.of_output(y)
    del x, y
    # The product's result is gone; its input and the last result are kept.
    assert peak(s.sizes, s.events) == (1200, 800)
    s.backward(z)
    del z
    assert weight.grad is not None
    assert weight.grad.size == 400
    assert peak(s.sizes, s.events)[1] == 400


def test_nothing_is_kept_without_gradients() -> None:
    s = Sketch(grad=False)
    y = s.of_output(s.product(Var(s.new(400), 100, 4), Param(100, 4).var))
    assert y.node is None
    assert peak(s.sizes, s.events) == (800, 400)


def test_frozen_weights_keep_no_input() -> None:
    s = Sketch()
    x = Var(s.new(400), 100, 4)
    y = s.linear(x, Param(100, 4, trainable=False), None, 10)
    del x
    assert y.node is None
    assert peak(s.sizes, s.events)[1] == y.size == 400


def test_two_gradients_are_summed_into_a_third_storage() -> None:
    s = Sketch()
    table = Param(50, 4)
    first, second = s.scaled(table.var), s.scaled(table.var)
    total = s.add(first, second)
    del first, second
    before = len(s.events)
    s.backward(total)
    allocated = [event for event in s.events[before:] if event >= 0]
    assert [s.sizes[number] for number in allocated] == [200] * 4  # the loss's own, 2 and the sum
    assert table.grad is not None


def test_views_join_their_gradients_once() -> None:
    s = Sketch()
    weight = Param(30, 4)
    parts = s.views(s.scaled(weight.var), 3)
    total = s.add(s.add(s.scaled(parts[0]), s.scaled(parts[1])), s.scaled(parts[2]))
    parts.clear()
    before = len(s.events)
    s.backward(total)
    sizes = [s.sizes[event] for event in s.events[before:] if event >= 0]
    assert sorted(sizes) == [40, 40, 40, 40, 120, 120]


def test_autocast_casts_a_weight_once() -> None:
    s = Sketch(low=2)
    weight = Param(100, 4)
    x = Var(s.new(400), 100, 4)
    s.linear(x, weight, None, 10)
    s.linear(x, weight, None, 10)
    casts = [size for size in s.sizes if size == 200]
    # x twice, the weight once, and two results of 10 x 10 numbers.
    assert len(casts) == 5


def _tower(s: Sketch, layers: int) -> set[int]:
    """A chain of layers with two weights each, a table below and a sum above."""
    weights = [(Param(64, 4), Param(16, 4)) for _ in range(layers)]
    s.mark("forward")
    x = s.of_input(Var(s.new(64), 16, 4, Param(16, 4)))
    for number, (wide, small) in enumerate(weights):
        s.mark("forward", number)
        inner = s.of_output(s.linear(x, wide, None, 2))
        narrowed = s.product(s.op([inner], 16, 4), small.var)
        x = s.add(x, narrowed)
        del inner, narrowed
    s.mark("forward")
    x = s.of_output(x)
    s.backward(x)
    del x
    _KEPT.append(weights)
    grads = [param.grad for pair in weights for param in pair]
    return {grad.number for grad in grads if grad is not None}


_KEPT: list[object] = []


@pytest.mark.parametrize("layers", [4, 5, 6, 9])
def test_repeating_a_layer_is_the_same_as_sketching_it_again(layers: int) -> None:
    gc.collect()
    shallow, deep = Sketch(), Sketch()
    step = unroll(shallow, _tower(shallow, SKETCHED), layers) if layers >= SKETCHED else Step()
    gradients = _tower(deep, layers)
    assert peak(step.sizes, step.events) == peak(deep.sizes, deep.events)
    kept = sum(step.sizes[number] for number in step.gradients)
    assert kept == sum(deep.sizes[number] for number in gradients)
    seen = [event for event in step.events if event >= 0]
    assert len(set(seen)) == len(seen)
    assert all(~event in set(seen) for event in step.events if event < 0)
