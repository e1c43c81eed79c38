"""How a batch is given to a model, and what is taken for its loss."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mpskit.errors import EstimateError
from mpskit.estimate.trace.steps import call_model, decode, default_loss, loss_of

GRADIENT = torch.ones(2, requires_grad=True)
SCALAR = torch.ones((), requires_grad=True)


class Seen(nn.Module):
    def forward(self, *inputs, **named):
        return inputs, named


class One(nn.Module):
    def __init__(self, make=lambda out: out):
        super().__init__()
        self.linear, self.make = nn.Linear(2, 3), make

    def forward(self, x):
        return self.make(self.linear(x))


@pytest.mark.parametrize(
    ("batch", "inputs", "named"),
    [(1, (1,), {}), ([1, 2], (1, 2), {}), ((1,), (1,), {}), ({"x": 1}, (), {"x": 1})],
)
def test_a_batch_is_given_as_people_do(batch, inputs, named):
    assert call_model(Seen(), batch) == (inputs, named)


@pytest.mark.parametrize("batch", [{"inputs": "x"}, "x"])
def test_decoding_asks_for_as_many_tokens(batch):
    model = SimpleNamespace(generate=lambda **options: options)
    assert decode(3)(model, batch) == {
        "inputs": "x",
        "max_new_tokens": 3,
        "min_new_tokens": 3,
        "do_sample": False,
    }


def test_decoding_needs_a_model_that_generates():
    with pytest.raises(EstimateError, match="no generate"):
        decode(3)(nn.Linear(1, 1), "x")


@pytest.mark.parametrize(
    ("result", "loss"),
    [
        ({"loss": SCALAR, "logits": GRADIENT}, 1.0),
        (SimpleNamespace(loss=SCALAR), 1.0),
        (3 * SCALAR, 3.0),
        ((torch.ones(2), 2 * GRADIENT), 2.0),
        ({"a": [GRADIENT, torch.ones(1, dtype=torch.int64)], "b": 2 * GRADIENT}, 3.0),
    ],
)
def test_what_is_taken_for_the_loss(result, loss):
    assert loss_of(result).item() == loss


@pytest.mark.parametrize("result", [None, torch.ones(2), {"loss": 1.0}, [torch.ones(1).int()]])
def test_nothing_to_train_on_is_told(result):
    with pytest.raises(EstimateError, match="without a loss"):
        loss_of(result)


@pytest.mark.parametrize("make", [lambda out: out, lambda out: SimpleNamespace(logits=out)])
def test_a_pair_is_an_input_and_its_target(make):
    x, model = torch.randn(4, 2), One(make)
    out, functional = model.linear(x), nn.functional
    classes, values = torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
    assert default_loss(model, (x, classes)).equal(functional.cross_entropy(out, classes))
    assert default_loss(model, [x, values]).equal(functional.mse_loss(out, values))


def test_classes_of_a_sequence_are_last():
    x, classes, model = torch.randn(4, 5, 2), torch.zeros(4, 5, dtype=torch.int64), One()
    expected = nn.functional.cross_entropy(model.linear(x).flatten(0, 1), classes.flatten())
    assert default_loss(model, (x, classes)).equal(expected)


def test_a_forward_without_a_signature_takes_the_whole_batch():
    class Odd(nn.Module):
        forward = dict  # has no signature that Python tells

        def __call__(self, *batch):
            return [SCALAR, *batch]

    assert default_loss(Odd(), (torch.ones(1), torch.ones(1))) is SCALAR


def test_a_forward_of_any_number_takes_the_whole_batch():
    class Any(nn.Module):
        def forward(self, *batch):
            return SCALAR * len(batch)

    assert default_loss(Any(), (1, 2)).item() == 2
