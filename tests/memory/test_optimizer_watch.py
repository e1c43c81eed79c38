"""Leaving a call at its first optimizer step."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.optim import optimizer

from interrupting import interrupted_at_each_line
from mpskit.memory.optimizer_watch import Left, OptimizerWatch, states_to_come


def trained(weight: nn.Parameter, *, closure: bool = False) -> None:
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def passes() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight * 2).sum()
        loss.backward()
        return loss

    if closure:
        optimizer.step(passes)
    else:
        passes()
        optimizer.step()


@pytest.mark.parametrize("closure", [False, True])
def test_a_call_that_may_not_go_on_is_left_before_a_weight_changes(closure: bool) -> None:
    weight, asked = nn.Parameter(torch.ones(2)), []

    def never(optimizer: object) -> bool:
        asked.append(weight.grad is not None)
        return False

    watch = OptimizerWatch(never)
    with pytest.raises(Left), watch:
        trained(weight, closure=closure)
    assert asked == [True], "the passes are over when it is asked"
    assert torch.equal(weight, torch.ones(2))
    assert (watch.left, watch.steps) == (True, 0)


@pytest.mark.parametrize("closure", [False, True])
def test_a_call_that_may_go_on_is_asked_once(closure: bool) -> None:
    weight, asked = nn.Parameter(torch.ones(2)), []
    watch = OptimizerWatch(lambda optimizer: not asked.append(1))
    with watch:
        trained(weight, closure=closure)
        trained(weight, closure=closure)
    assert len(asked) == 1
    assert torch.equal(weight, torch.full((2,), -3.0))
    assert (watch.left, watch.steps) == (False, 2)


def test_a_call_that_catches_everything_trains_nothing() -> None:
    weight = nn.Parameter(torch.ones(2))
    watch = OptimizerWatch(lambda optimizer: False)
    with watch:
        for _ in range(3):
            with pytest.raises(Left):
                trained(weight)
    assert torch.equal(weight, torch.ones(2))
    assert watch.left


def test_other_threads_and_later_steps_do_not_count() -> None:
    weight = nn.Parameter(torch.ones(2))
    with OptimizerWatch(lambda optimizer: False) as watch:
        thread = threading.Thread(target=trained, args=(weight,))
        thread.start()
        thread.join()
    trained(weight)
    assert not watch.left
    assert torch.equal(weight, torch.full((2,), -3.0))


def test_the_second_step_may_be_the_one() -> None:
    weight = nn.Parameter(torch.ones(2))
    with OptimizerWatch(lambda optimizer: False, step=2) as watch:
        trained(weight)
        with pytest.raises(Left):
            trained(weight)
    assert torch.equal(weight, torch.full((2,), -1.0))
    assert watch.steps
    assert watch.left


@pytest.mark.parametrize(
    ("kind", "arguments", "states"),
    [
        (torch.optim.AdamW, {}, 2),
        (torch.optim.SGD, {}, 0),
        (torch.optim.SGD, {"momentum": 0.9}, 1),
        (torch.optim.Rprop, {}, 0),
    ],
)
def test_states_that_the_first_step_will_make(kind, arguments, states) -> None:
    weight, frozen = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(7))
    optimizer = kind([weight, frozen], lr=0.1, **arguments)
    weight.sum().backward()
    assert states_to_come(optimizer) == states * 5 * 4
    optimizer.step()
    assert states_to_come(optimizer) == 0


def test_no_interrupt_leaves_a_hook() -> None:
    before = len(optimizer._global_optimizer_pre_hooks)

    def work() -> None:
        with OptimizerWatch(lambda optimizer: True):
            trained(nn.Parameter(torch.ones(2)))

    for where in interrupted_at_each_line(work):
        assert len(optimizer._global_optimizer_pre_hooks) == before, where
