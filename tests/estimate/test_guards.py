"""What a step may do inside a trace, and what of it is left outside: nothing."""

import gc
import sys

import pytest
import torch
from torch import nn

from mpskit.estimate import estimate_training_memory
from mpskit.estimate.trace import tracer

pytestmark = pytest.mark.needs_torch("estimate")

X = torch.ones(4, 8)


def estimated(step, device="mps", model=None, **asked):
    return estimate_training_memory(model or nn.Linear(8, 8), X, step=step, device=device, **asked)


def plain(model, x):
    return model(x).sum()


def autocast_state():
    return [
        (name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name))
        for name in ("cpu", "mps")
    ] + [torch.is_autocast_cache_enabled(), torch._C._len_torch_function_stack()]


@pytest.mark.parametrize("device", ["cpu", "mps"])
@pytest.mark.parametrize("regions", [1, 2])
def test_a_region_of_autocast_that_a_step_leaves_open_ends_with_the_trace(device, regions):
    def step(model, x):
        for _ in range(regions):
            torch.autocast(device, torch.bfloat16).__enter__()
        return plain(model, x)

    before = autocast_state()
    estimated(step, device)
    assert autocast_state() == before
    torch.autocast_increment_nesting()
    assert torch.autocast_decrement_nesting() == 0


def test_the_cpus_autocast_does_not_cast_for_the_target():
    seen = []

    def step(model, x):
        for device in ("cpu", "mps"):
            with torch.autocast(device, torch.bfloat16):
                seen.append(model(x).dtype)
        return plain(model, x)

    estimated(step, steps=1)
    assert seen == [torch.float32, torch.bfloat16]


def test_the_innermost_region_of_autocast_does_not_end_the_one_around_it():
    seen = []

    def step(model, x):
        with torch.autocast("mps", torch.bfloat16):
            with torch.autocast("mps", torch.bfloat16):
                seen.append(model(x).dtype)
            seen.append(model(x).dtype)
        seen.append(model(x).dtype)
        return plain(model, x)

    estimated(step, steps=1)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_what_is_known_can_be_read_and_what_is_not_is_described():
    seen = []

    def step(model, x):
        known = torch.arange(3)
        seen.append((known.tolist(), known.numpy().sum(), repr(known)))
        seen.append(repr(model.weight.data))
        return plain(model, x)

    estimated(step, "cpu", steps=1)
    assert seen[0] == ([0, 1, 2], 3, "tensor([0, 1, 2])")
    assert seen[1] == "tensor(..., size=(8, 8), dtype=torch.float32)"


@pytest.mark.parametrize("device", [0, "mps", "mps:0", "cuda:1", torch.device("mps"), "cpu"])
def test_every_device_of_the_target_is_here(device):
    def step(model, x):
        model.to(device=device)
        return plain(model, x.to(device) + x.to(device=device))

    assert estimated(step).parameters_bytes == estimated(plain).parameters_bytes


@pytest.mark.parametrize("loaded", [True, False])
def test_a_program_that_never_compiled_needs_no_dynamo(loaded, monkeypatch):
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch._dynamo.eval_frame", raising=False)
    assert estimated(plain).peak_bytes > 0


def test_the_garbage_collector_stays_off_where_it_was_off():
    gc.disable()
    try:
        estimated(plain)
        assert not gc.isenabled()
    finally:
        gc.enable()
    estimated(plain)
    assert gc.isenabled()


def test_a_named_stretch_of_time_is_no_operator():
    def step(model, x):
        with torch.profiler.record_function("mine"):
            return plain(model, x)

    assert estimated(step) == estimated(plain)


def test_plans_are_forgotten_when_there_are_too_many(monkeypatch):
    bare = estimated(plain)
    monkeypatch.setattr(tracer, "_PLANS", {})
    monkeypatch.setattr(tracer, "_PLANS_LIMIT", 2)
    assert estimated(plain) == bare
    assert len(tracer._PLANS) <= 2


class Odd(nn.Module):
    """Buffers that are None, sparse, or two views of one storage; tensors as attributes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        whole = torch.zeros(2000)
        self.register_buffer("none", None)
        self.register_buffer("sparse", torch.eye(8).to_sparse())
        self.register_buffer("first", whole[:1000])
        self.register_buffer("second", whole[1000:])
        self.noted = torch.zeros(500)
        self.several = [torch.zeros(500), "text", torch.eye(8).to_sparse()]

    def forward(self, x):
        return self.linear(x)


def test_what_modules_hold_is_counted_once_and_left_alone():
    model = Odd()
    before = dict(model.named_buffers())
    found = estimated(plain, model=model)
    assert found.parameters_bytes == estimated(plain, model=nn.Linear(8, 8)).parameters_bytes
    assert found.buffers_bytes == 4 * (2000 + 2 * 500)
    assert all(model.get_buffer(name) is buffer for name, buffer in before.items())
    assert model.second.data_ptr() == model.first.data_ptr() + 4000


def test_attributes_that_a_step_adds_to_a_weight_are_gone():
    model = nn.Linear(8, 8)

    def step(model, x):
        model.weight.seen = True
        return plain(model, x)

    estimated(step, model=model)
    assert not hasattr(model.weight, "seen")


class Counting(torch.optim.SGD):
    """An optimizer whose states are no tensors, or are of several kinds."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state.setdefault("sum", torch.zeros_like(parameter))
        return super().step(closure)


@pytest.mark.parametrize("used", [False, True])
def test_states_that_are_no_tensors(used):
    model = nn.Linear(8, 8)
    optimizer = Counting(model.parameters(), lr=0.1)
    if used:
        plain(model, X).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {p: dict(state) for p, state in optimizer.state.items()}
    found = estimated(plain, model=model, optimizer=optimizer)
    assert found.optimizer_bytes == found.parameters_bytes
    assert {p: dict(state) for p, state in optimizer.state.items()} == before
