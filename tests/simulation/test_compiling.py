import warnings

import pytest
import torch

from mpskit.errors import SimulationWarning
from mpskit.simulation import simulate


def test_compile_runs_eagerly_and_says_so_once():
    with simulate("m1-8gb"):
        model = torch.nn.Linear(2, 2, device="mps")
        with pytest.warns(SimulationWarning, match="runs eagerly"):
            compiled = torch.compile(model)

        @torch.compile(mode="reduce-overhead")  # warnings are errors: it says nothing more
        def double(x):
            return x * 2

        assert double(compiled(torch.ones(1, 2, device="mps"))).is_mps
        model.compile()
        assert model(torch.ones(1, 2, device="mps")).is_mps


def test_compile_is_torch_s_own_again_after():
    original = torch.compile
    with simulate("m1-8gb"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.compile is not original
    assert torch.compile is original


def test_every_simulation_says_it_anew():
    for _ in range(2):
        with simulate("m1-8gb"), pytest.warns(SimulationWarning):
            torch.compile(torch.nn.Linear(1, 1))


@pytest.mark.filterwarnings("ignore:torch.compile does nothing")
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}, {"mode": "reduce-overhead"}])
def test_a_module_becomes_an_optimized_module(options):
    with simulate("m1-8gb"):
        model = torch.nn.Linear(2, 2).to("mps")
        compiled = torch.compile(model, **options)
        assert type(compiled).__name__ == "OptimizedModule"
        assert compiled._orig_mod is model
        assert list(compiled.state_dict()) == ["_orig_mod.weight", "_orig_mod.bias"]
        compiled(torch.ones(1, 2, device="mps")).sum().backward()
        assert model.weight.grad.is_mps
        assert torch.compile(**options)(model)._orig_mod is model
        assert type(compiled) is torch._dynamo.OptimizedModule
