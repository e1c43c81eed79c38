"""Answerers compose, and threads of our own stay outside of a simulated Mac."""

import threading

import pytest
import torch
from torch import nn

import mpskit
from mpskit.dispatch import intercept
from mpskit.dispatch.dataless_tensors import is_dataless
from mpskit.dispatch.intercept import OutsideThread, intercepting
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.estimate.trace.tracer import Tracer
from mpskit.simulation import operators

pytestmark = pytest.mark.needs_torch("simulation")


class Counting:
    """Hands every operator to another answerer."""

    def __init__(self, other):
        self.other, self.names = other, []

    def decomposed(self, func):
        return self.other.decomposed(func)

    def answer(self, func, args, kwargs):
        self.names.append(func._schema.name)
        return self.other.answer(func, args, kwargs)


def test_an_answerer_may_hand_an_operator_to_another():
    log = StorageLog()
    counting = Counting(Tracer(log))
    with intercepting(counting):
        result = nn.Linear(512, 512)(torch.empty(64, 512, dtype=torch.float32).normal_())
    assert is_dataless(result)
    assert {"aten::empty", "aten::addmm"} <= set(counting.names)
    assert 64 * 512 * 4 in {record.size for record in log.records}


def three_steps():
    torch.manual_seed(0)
    with mpskit.simulate("m1-8gb") as mac:
        model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 8)).to("mps")
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            loss = model(torch.randn(32, 256, device="mps")).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss.device.type == "mps"
        return (mac.peak_allocated_bytes, mac.peak_driver_bytes), is_dataless(model[0].weight)


def test_a_simulated_mac_may_hand_its_operators_to_a_tracer(monkeypatch):
    real, dataless = three_steps()
    assert not dataless
    tracer = Tracer(StorageLog(), supports_float64=False)

    def call(self, func, facts, on_mac, args, kwargs):
        return tracer.answer(func, args, kwargs)

    monkeypatch.setattr(operators.Dispatch, "_call", call)
    assert three_steps() == (real, True)


@pytest.mark.parametrize(("kind", "depth"), [(threading.Thread, 1), (OutsideThread, 0)])
def test_threads_of_our_own_stay_outside(kind, depth):
    seen = []
    with mpskit.simulate("m1-8gb"):
        thread = kind(target=lambda: seen.append(len(intercept._ACTIVE.stack)))
        thread.start()
        thread.join()
    assert seen == [depth]


def test_the_key_is_registered_once_whoever_comes_first(monkeypatch):
    made = []
    ready = threading.Barrier(4)

    def register():
        made.append(1)
        return "key"

    monkeypatch.setattr(intercept, "_KEY", [])
    monkeypatch.setattr(intercept, "_register", register)

    def ask():
        ready.wait()
        intercept.registered_key()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


class Parts:
    """Takes what is composite apart, and notes what reaches it."""

    def __init__(self):
        self.names = []

    def decomposed(self, func):
        return func.name() == "aten::matmul"

    def answer(self, func, args, kwargs):
        self.names.append(func._schema.name)
        return func(*args, **kwargs)


class Wrapped(torch.Tensor):
    """Unwraps itself, as torch's own subclasses do."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(arg.inner if isinstance(arg, cls) else arg for arg in args))


@pytest.mark.parametrize("keyed", [True, False])
def test_subclasses_and_composites_through_the_key_and_through_a_mode(keyed, monkeypatch):
    if not keyed:  # as on a torch whose library takes no fallback
        monkeypatch.setattr(intercept, "registered_key", lambda: None)
    parts, wrapped, x = Parts(), Wrapped(torch.ones(2, 2)), torch.ones(2, 2)
    with intercepting(parts), torch.inference_mode():
        assert torch.add(wrapped, 1).tolist() == [[2.0, 2.0], [2.0, 2.0]]
        assert torch.matmul(x, x).tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert "aten::mm" in parts.names
    assert "aten::matmul" not in parts.names


def test_nothing_is_seen_again_without_a_key(monkeypatch):
    monkeypatch.setattr(intercept, "registered_key", lambda: None)
    with intercept.seen_again():
        assert torch.ones(2).sum() == 2


@pytest.mark.parametrize("lacking", ["fallback", "_dispatch_key_parse"])
def test_a_torch_that_takes_no_fallback_has_no_key(lacking, monkeypatch):
    owner = torch.library.Library if lacking == "fallback" else torch._C
    monkeypatch.delattr(owner, lacking)
    assert intercept._register() is None


@pytest.mark.parametrize("entered", [True, False])
def test_a_mode_is_taken_off_only_where_it_is_on(entered):
    mode, around = (torch.utils._python_dispatch.TorchDispatchMode() for _ in range(2))
    with around:
        if entered:
            mode.__enter__()
        intercept.take_off(mode)
        assert intercept._get_current_dispatch_mode_stack()[-1] is around
