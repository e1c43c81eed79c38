"""Single rules of the tracer."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mpskit.dispatch import intercept as interception
from mpskit.dispatch.dataless_tensors import dataless_tensor, is_dataless
from mpskit.dispatch.intercept import intercepting
from mpskit.estimate import TensorSpec, estimate_inference_memory, estimate_training_memory
from mpskit.estimate.trace import tracer as module
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.estimate.trace.tracer import Tracer
from mpskit.estimate.trace.unknown_values import spread

pytestmark = pytest.mark.needs_torch("estimate")


def dataless(*shape):
    strides = torch.empty(shape, device="meta").stride()
    return dataless_tensor(shape, strides, torch.float32, 4 * torch.Size(shape).numel())


def traced(run):
    log = StorageLog()
    with intercepting(Tracer(log)):
        result = run()
    return result, log


def test_an_dataless_tensor_reads_as_zeros_and_costs_nothing():
    huge = dataless(1 << 40)
    assert is_dataless(huge)
    assert not is_dataless(torch.ones(3))
    assert float(dataless(3).sum()) == 0.0


def test_what_is_large_is_not_computed_and_what_is_known_is():
    (large, small), log = traced(lambda: (dataless(64, 64) @ dataless(64, 8), torch.arange(5) * 2))
    assert is_dataless(large)
    assert large.shape == (64, 8)
    assert small.tolist() == [0, 2, 4, 6, 8]
    assert 64 * 8 * 4 in {record.size for record in log.records}


def test_a_known_tensor_is_unknown_once_an_unknown_is_written_into_it():
    def run():
        known = torch.zeros(4)
        known.add_(dataless(4))
        return known * 2

    assert is_dataless(traced(run)[0])


def test_what_became_unknown_is_forgotten_with_its_storage():
    def run():
        known = torch.zeros(4)
        known.add_(dataless(4))

    assert traced(run)[1].unknown == set()


def test_inference_mode_is_taken_apart_too():
    layer, x = torch.nn.Linear(16, 32), dataless(8, 16)
    with torch.inference_mode():
        y, log = traced(lambda: layer(x))
    assert y.shape == (8, 32)
    assert "addmm" in {record.op for record in log.records}


def test_older_torch_is_traced_through_a_mode(monkeypatch):
    layer, x = torch.nn.Linear(16, 32), dataless(8, 16)
    _, keyed = traced(lambda: layer(x).relu().sum().backward())
    monkeypatch.setattr(interception, "registered_key", lambda: None)
    layer.zero_grad()
    _, moded = traced(lambda: layer(x).relu().sum().backward())
    sizes = [[(r.op, r.size) for r in log.records] for log in (keyed, moded)]
    assert sizes[0] == sizes[1]


def test_views_share_and_die_with_their_storage():
    source = dataless(8, 8)

    def run():
        base = source + 1
        view = base.t()[2:]
        del base
        return view

    view, log = traced(run)
    assert [e for e in log.events if e < 0] == []
    del view
    assert len([e for e in log.events if e < 0]) == 1


def test_composite_operators_take_the_path_of_a_real_run():
    # A linear layer on a transposed input adds its bias in place: one result, not two.
    layer, x = torch.nn.Linear(16, 32), dataless(4, 8, 16).transpose(0, 1)
    with torch.no_grad():
        _, log = traced(lambda: layer(x))
    assert [r.op for r in log.records if r.size == 4 * 8 * 32 * 4] == ["mm"]


def test_out_arguments_are_resized():
    out, log = traced(lambda: torch.add(dataless(3, 4), 1, out=torch.empty(0)))
    assert out.shape == (3, 4)
    assert 48 in {record.size for record in log.records}


def test_masks_that_are_known_give_their_shape():
    mask = torch.tensor([True, False, True, True])
    picked, _ = traced(lambda: (dataless(4, 5)[mask], torch.masked_select(dataless(4), mask)))
    assert [tuple(t.shape) for t in picked] == [(3, 5), (3,)]


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_choices_are_spread_evenly_and_differ_within_a_row(rows, size, data):
    k = data.draw(st.integers(1, size))
    found = spread((rows, k), torch.Size((rows, size)), -1)
    assert all(len(set(row)) == k for row in found.tolist())
    counts = torch.bincount(found.flatten(), minlength=size)
    assert int(counts.max() - counts.min()) <= 1


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def linear():
    return nn.Linear(256, 256)


def half_linear():
    with default_dtype(torch.bfloat16):
        return linear()


def as_bfloat16(model, batch):
    return model(batch.to(torch.bfloat16)).float().mean()


def by_index(model, batch):
    return model(batch).index_add(0, torch.zeros(8, dtype=torch.long), torch.zeros(8, 256)).mean()


BATCH = TensorSpec((8, 256))
CASES = {
    "fp32": lambda: estimate_training_memory(linear, BATCH, device="mps"),
    "half": lambda: estimate_training_memory(half_linear, BATCH, step=as_bfloat16, device="mps"),
    "mixed": lambda: estimate_training_memory(linear, BATCH, precision="bf16-mixed", device="mps"),
    "inference": lambda: estimate_inference_memory(linear, BATCH, device="mps"),
    "on meta": lambda: estimate_training_memory(lambda: nn.Linear(256, 256, device="meta"), BATCH),
    "index": lambda: estimate_training_memory(linear, BATCH, step=by_index, device="mps"),
}


def in_surroundings(name):
    with deterministic() if name == "index" else contextlib.nullcontext():
        return CASES[name]()


@pytest.fixture(scope="module")
def alone():
    """Each case as the first of a process."""
    found = {}
    for name in CASES:
        module._PLANS.clear()
        found[name] = in_surroundings(name)
    return found


@settings(max_examples=30, deadline=None)
@given(order=st.lists(st.sampled_from(sorted(CASES)), min_size=2, max_size=6))
def test_the_same_call_gives_the_same_bytes_after_any_others(alone, order):
    module._PLANS.clear()
    for name in order:
        assert in_surroundings(name) == alone[name], (name, order)


@torch.library.custom_op("mpskit_test::saves", mutates_args=())
def saves(x: torch.Tensor) -> torch.Tensor:
    return x.repeat(2 if torch.is_grad_enabled() else 1)


@saves.register_fake
def _(x):
    return x.new_empty(x.numel() * (2 if torch.is_grad_enabled() else 1))


def test_a_plan_belongs_to_the_grad_mode_that_it_was_made_in():
    x = dataless(64, 64)
    for enabled in (True, False, True):
        with torch.set_grad_enabled(enabled):
            assert traced(lambda: saves(x))[0].numel() == 64 * 64 * (1 + enabled)
