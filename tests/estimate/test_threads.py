"""Estimates in several threads, beside real work and beside a simulated Mac; and interrupts."""

import contextlib
import importlib
import linecache
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad

import mpskit
from mpskit import TensorSpec, estimate_training_memory
from mpskit.errors import EstimateError, SimulationError

pytestmark = pytest.mark.needs_torch("estimate")

OWNERS = (
    torch,
    torch.random,
    torch.Tensor,
    torch.autograd,
    torch.autograd.graph,
    torch.amp.autocast_mode.autocast,
    torch.backends.mha,
    importlib.import_module("torch.optim.optimizer"),
    clip_grad,
    nn.Module,
    threading.Thread,
)
BATCH = TensorSpec((4, 8))


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def state(*models):
    """Return everything that an estimate must leave as it was, in a form that compares."""
    numpy = np.random.get_state()
    tensors = [t for m in models for t in (*m.parameters(), *m.buffers())]
    return (
        {
            (o, n): id(v)
            for o in OWNERS
            for n, v in vars(o).items()
            if not isinstance(v, ModuleType)
        },
        torch.get_rng_state().tolist(),
        random.getstate(),
        (numpy[1].tolist(), numpy[2:]),
        (torch.is_grad_enabled(), torch.is_autocast_cache_enabled()),
        [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "mps")],
        (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
        [(id(t), t.tolist(), None if t.grad is None else t.grad.tolist()) for t in tensors],
        [{n: id(v) for n, v in vars(part).items()} for m in models for part in m.modules()],
    )


def with_gradients():
    model = mlp()
    model(torch.randn(2, 8)).sum().backward()
    return model


@pytest.fixture(autouse=True)
def _warm():
    estimate_training_memory(mlp, BATCH, device="mps")  # what torch imports at the first one stays


def together(work, count):
    """Run ``work(number)`` on so many threads that all begin at once; return what they return."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Paused:
    """A step that stops in the middle until it is told to go on."""

    def __init__(self):
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, model, batch):
        loss = model(batch).mean()
        self.inside.set()
        assert self.go.wait(60)
        return loss


@contextlib.contextmanager
def paused_estimate(model, **options):
    """Yield while another thread, ``first_0``, is in the middle of an estimate."""
    step, options = Paused(), {"device": "mps"} | options
    with ThreadPoolExecutor(1, thread_name_prefix="first") as pool:
        future = pool.submit(estimate_training_memory, model, BATCH, step=step, **options)
        try:
            assert step.inside.wait(60)
            yield
        finally:
            step.go.set()
        assert future.result() == estimate_training_memory(model, BATCH, step=step, **options)


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_models_of_their_own_in_eight_threads(device):
    models = [with_gradients() for _ in range(8)]
    alone = estimate_training_memory(models[0], BATCH, device=device)
    before = state(*models)

    def work(number):
        told = [estimate_training_memory(models[number], BATCH, device=device) for _ in range(25)]
        return told + [estimate_training_memory(mlp, BATCH, device=device) for _ in range(25)]

    for figures in together(work, 8):
        assert all(told == alone for told in figures[:25])
        assert len({told.model_dump_json() for told in figures[25:]}) == 1
    assert state(*models) == before


def test_shared_models_in_eight_threads_are_estimated_or_refused():
    models = [with_gradients() for _ in range(2)]
    alone = estimate_training_memory(models[0], BATCH, device="mps")
    before = state(*models)

    def work(number):
        outcomes = []
        for turn in range(50):
            try:
                outcomes.append(
                    estimate_training_memory(models[(number + turn) % 2], BATCH, device="mps")
                )
            except EstimateError as error:
                outcomes.append(str(error))
        return outcomes

    outcomes = [outcome for part in together(work, 8) for outcome in part]
    refusals = {o for o in outcomes if isinstance(o, str)}
    assert all(o == alone for o in outcomes if not isinstance(o, str))
    assert all("Sequential, or a part of it, is being estimated already" in o for o in refusals)
    assert len(refusals) < len(outcomes)
    assert state(*models) == before


def test_what_is_under_exchange_is_refused_by_name():
    shared = mlp()
    holder = nn.Sequential(nn.Linear(8, 8), shared)
    optimizer = torch.optim.AdamW(mlp().parameters())
    before = state(shared, holder)
    with paused_estimate(shared, optimizer=optimizer):
        with pytest.raises(EstimateError, match=r"Sequential.* on thread first_0") as refused:
            estimate_training_memory(holder, BATCH, device="mps")
        assert refused.value.given == "Sequential"
        with pytest.raises(EstimateError, match=r"AdamW.* on thread first_0"):
            estimate_training_memory(mlp, BATCH, optimizer=optimizer, device="mps")
    assert state(shared, holder) == before
    assert estimate_training_memory(holder, BATCH, device="mps").peak_bytes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, at its first compile
def test_other_threads_meet_torch_as_it_is():
    drawn = torch.Generator().manual_seed(5)
    expected = torch.rand(3, generator=drawn), torch.rand(3, generator=drawn)
    model = mlp()
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected[0])
    with paused_estimate(mlp, device="mps"):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.ones(2, 8)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert torch.ones(2).tolist() == torch.ones(2).numpy().tolist() == [1, 1]
        assert torch.compile(model) is not model
        assert torch.backends.mha.get_fastpath_enabled()
        assert str(torch.ones(1).to(torch.device("cpu"))) == "tensor([1.])"
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(1).to("cuda")
        with torch.autocast("cpu", torch.bfloat16):
            assert model(torch.ones(2, 8)).dtype is torch.bfloat16
        assert torch.initial_seed() == 5
        assert torch.equal(torch.rand(3), expected[1])


def test_a_builder_and_a_step_draw_from_no_generator_of_the_process():
    def make():
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        model = mlp()
        torch.nn.init.normal_(model[0].bias, random.random(), np.random.rand())
        torch.rand(3), torch.randperm(3), torch.rand_like(torch.ones(3))
        return model

    def step(model, batch):
        torch.set_rng_state(torch.get_rng_state())
        with torch.random.fork_rng():
            torch.seed()
        return (model(batch) * torch.rand(())).mean()

    before = state()
    first = estimate_training_memory(make, BATCH, step=step, device="mps")
    torch.rand(7)
    assert estimate_training_memory(make, BATCH, step=step, device="mps") == first
    assert state()[1] != before[1]  # by our own draw
    torch.set_rng_state(torch.tensor(before[1], dtype=torch.uint8))
    assert state() == before


def test_a_simulated_mac_cannot_be_entered_while_a_model_is_traced():
    before = state()
    with paused_estimate(mlp):
        with pytest.raises(SimulationError, match="traced on first_0"), mpskit.simulate("m1-8gb"):
            pass
        assert torch.ones(1).device.type == "cpu"
    assert state() == before
    with mpskit.simulate("m1-8gb"):
        assert torch.ones(1).to("mps").device.type == "mps"


def test_a_simulated_mac_may_be_left_while_a_model_is_traced():
    before = state()
    with contextlib.ExitStack() as stack:
        with mpskit.simulate("m1-8gb"):
            stack.enter_context(paused_estimate(mlp))
            assert torch.ones(1).to("mps").device.type == "mps"
        assert torch.ones(1).device.type == "cpu"
    assert state() == before


TRACED = [
    Path(mpskit.__file__).parent / part
    for part in (
        "dispatch/intercept.py",
        "dispatch/patches.py",
        "dispatch/random_state.py",
        "estimate/targets.py",
        "estimate/trace/guards.py",
        "estimate/trace/model_state.py",
        "estimate/trace/module_tracker.py",
        "estimate/trace/optimizers.py",
        "estimate/trace/run.py",
    )
]


def lines_of(run):
    """Return each line of the traced files that a call reaches."""
    found = {}
    _follow(run, lambda place: found.setdefault(place))
    return list(found)


def _follow(run, seen):
    files = {str(path) for path in TRACED}

    def trace(frame, event, _):
        if frame.f_code.co_filename not in files:
            return None
        place = frame.f_code.co_filename, frame.f_lineno
        # At a ``with`` it is called on the way out too, where Python never raises an interrupt.
        if event == "line" and not linecache.getline(*place).lstrip().startswith("with "):
            seen(place)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)


def test_an_interrupt_at_any_line_changes_nothing():
    model = with_gradients()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.step()

    def run():
        with torch.random.fork_rng(devices=[]):
            estimate_training_memory(
                model, BATCH, optimizer=optimizer, precision="bf16-mixed", steps=1, device="mps"
            )
            estimate_training_memory(mlp, BATCH, steps=1, device="mps")

    run()
    places = lines_of(run)
    before, kept = state(model), [v.tolist() for s in optimizer.state.values() for v in s.values()]
    for place in places:

        def interrupt(here, place=place):
            if here == place:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _follow(run, interrupt)
        assert state(model) == before, place
        assert [v.tolist() for s in optimizer.state.values() for v in s.values()] == kept, place
    assert len(places) > 200
