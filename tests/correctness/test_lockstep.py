"""Two runs draw the same numbers, whatever operator asks; modules are watched in order."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mpskit.correctness.lockstep import Draws, Site, Watch, on_cpu, run_step


def run(step, draws, batch=None, model=None, **how):
    model = nn.Linear(4, 4) if model is None else model
    watch = Watch(model, draws, **how)
    return run_step(watch, model, step, torch.ones(4) if batch is None else batch, train=False)


DRAWN = {
    "dropout": lambda _, x: functional.dropout(x.expand(64, 4), 0.5),
    "rand": lambda *_: torch.rand(3, 2),
    "randn_like": lambda _, x: torch.randn_like(x),
    "randint": lambda *_: torch.randint(0, 100, (5,)).float(),
    "randperm": lambda *_: torch.randperm(20).float(),
    "normal_": lambda _, x: torch.empty_like(x).normal_(),
    "multinomial": lambda _, x: torch.multinomial(x, 8, replacement=True).float(),
    "normal": lambda _, x: torch.normal(x, x),
    "given a generator": lambda *_: torch.rand(3, generator=torch.Generator()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_numbers_again(name):
    draws = Draws()
    first = run(DRAWN[name], draws).result[0]
    draws.rewind()
    second = run(DRAWN[name], draws).result[0]
    draws.rewind()
    wide = run(DRAWN[name], draws, lift=True).result[0]
    assert torch.equal(first, second)
    assert torch.allclose(first.double(), wide.double())
    assert draws.unmatched == 0


def test_a_fused_dropout_gets_the_mask_of_the_other():
    draws, x = Draws(), torch.rand(64, 4) + 1
    plain = run(lambda _, x: functional.dropout(x, 0.25), draws, x).result[0]
    draws.rewind()
    fused = run(lambda _, x: torch.native_dropout(x, 0.25, True)[0], draws, x).result[0]
    assert torch.allclose(plain, fused)
    assert 0 < (fused == 0).float().mean() < 0.6
    kept = run(lambda _, x: torch.native_dropout(x, 0.25, False)[0], draws, x).result[0]
    assert torch.equal(kept, x)


def test_other_draws_are_told():
    draws = Draws()
    run(lambda *_: torch.rand(3), draws)
    draws.rewind()
    run(lambda _, x: functional.dropout(x, 0.5) + torch.rand(4), draws)
    assert draws.unmatched >= 1


def test_the_users_generator_is_left_alone():
    model, before = nn.Linear(4, 4), torch.get_rng_state()
    run(DRAWN["rand"], Draws(), model=model)
    assert torch.equal(before, torch.get_rng_state())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.inner(self.inner(x))


def test_modules_in_the_order_in_which_they_end():
    model = Twice()
    record = run_step(
        Watch(model, Draws()), model, lambda m, x: m(x).sum(), torch.ones(2, 4), train=True
    )
    assert list(record.outputs) == [
        Site("inner.0", 0),
        Site("inner.1", 0),
        Site("inner", 0),
        Site("inner.0", 1),
        Site("inner.1", 1),
        Site("inner", 1),
        Site("", 0),
    ]
    assert next(iter(record.output_gradients)) in {
        Site("", 0),
        Site("inner", 1),
        Site("inner.1", 1),
    }
    assert set(record.gradients) == {"inner.0.weight", "inner.0.bias"}


def test_operators_are_placed_in_their_modules_also_in_backward():
    seen = set()

    def note(call, go):
        seen.add((call.name, call.module, call.backward))
        return go()

    model = Twice()
    watch = Watch(model, Draws(), check=note)
    run_step(watch, model, lambda m, x: m(x).sum(), torch.ones(2, 4), train=True)
    assert {("addmm", "inner.0", False), ("relu", "inner.1", False)} <= seen
    assert ("threshold_backward", "inner.1", True) in seen
    assert ("mm", "inner.0", True) in seen
    assert ("sum", "", False) in seen


def test_float64_reaches_what_a_model_makes_itself():
    def step(_, x):
        return x.float() * torch.ones(4) + torch.arange(4, dtype=torch.float32)

    assert run(step, Draws(), torch.ones(4).double(), lift=True).result[0].dtype is torch.float64


def test_an_error_on_the_cpu_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        on_cpu(lambda: 1 / 0)
    assert on_cpu(torch.is_grad_enabled) is False
