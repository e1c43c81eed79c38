"""What a failed step leaves in ``.grad``."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from mpskit.memory.gradients import Gradients


def backward(layer: nn.Module) -> None:
    layer(torch.ones(2, 3)).sum().backward()


def test_new_gradients_are_taken_back_and_others_stay() -> None:
    mine, other = nn.Linear(3, 1), nn.Linear(3, 1)
    backward(other)
    before = Gradients()
    backward(mine)
    changes = before.changes()
    assert {id(leaf) for leaf in changes.new} == {id(leaf) for leaf in mine.parameters()}
    assert not changes.written
    changes.take_back()
    assert mine.weight.grad is None
    assert torch.equal(other.bias.grad, torch.tensor([2.0]))


def test_one_that_was_there_and_is_added_to_is_told() -> None:
    layer = nn.Linear(3, 1)
    backward(layer)
    before = Gradients()
    assert not before.changes().written
    backward(layer)
    assert before.changes().written


def test_a_step_that_drops_the_old_ones_first_leaves_new_ones() -> None:
    layer = nn.Linear(3, 1)
    backward(layer)
    before = Gradients()
    layer.zero_grad()
    backward(layer)
    changes = before.changes()
    assert not changes.written
    changes.take_back()
    assert layer.weight.grad is None


def test_the_memory_of_the_old_ones_is_not_kept() -> None:
    layer = nn.Linear(3, 1)
    backward(layer)
    grad = weakref.ref(layer.weight.grad)
    before = Gradients()
    layer.zero_grad()
    gc.collect()
    assert grad() is None
    assert not before.changes().new


def test_leaves_that_are_known_are_not_looked_for() -> None:
    known, unknown = nn.Linear(3, 1), nn.Linear(3, 1)
    backward(unknown)
    before = Gradients([weakref.ref(leaf) for leaf in known.parameters()])
    assert len(before.leaves) == 2
    assert len(before.changes().new) >= 2


def test_sparse_gradients() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    before = Gradients()
    table(torch.tensor([1])).sum().backward()
    assert any(leaf is table.weight for leaf in before.changes().new)
    with_it = Gradients()
    assert all(leaf is not table.weight for leaf in with_it.changes().new)
