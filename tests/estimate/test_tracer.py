"""Single rules of the tracer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mpskit.dispatch import intercept as interception
from mpskit.dispatch.dataless_tensors import is_unbacked, unbacked_tensor
from mpskit.dispatch.intercept import intercepting
from mpskit.estimate.trace.storage_log import Ledger
from mpskit.estimate.trace.tracer import Tracer
from mpskit.estimate.trace.unknown_values import spread


def unbacked(*shape):
    strides = torch.empty(shape, device="meta").stride()
    return unbacked_tensor(shape, strides, torch.float32, 4 * torch.Size(shape).numel())


def traced(run):
    ledger = Ledger()
    with intercepting(Tracer(ledger)):
        result = run()
    return result, ledger


def test_an_unbacked_tensor_reads_as_zeros_and_costs_nothing():
    huge = unbacked(1 << 40)
    assert is_unbacked(huge)
    assert not is_unbacked(torch.ones(3))
    assert float(unbacked(3).sum()) == 0.0


def test_what_is_large_is_not_computed_and_what_is_known_is():
    (large, small), ledger = traced(
        lambda: (unbacked(64, 64) @ unbacked(64, 8), torch.arange(5) * 2)
    )
    assert is_unbacked(large)
    assert large.shape == (64, 8)
    assert small.tolist() == [0, 2, 4, 6, 8]
    assert 64 * 8 * 4 in {record.size for record in ledger.records}


def test_a_known_tensor_is_unknown_once_an_unknown_is_written_into_it():
    def run():
        known = torch.zeros(4)
        known.add_(unbacked(4))
        return known * 2

    assert is_unbacked(traced(run)[0])


def test_what_became_unknown_is_forgotten_with_its_storage():
    def run():
        known = torch.zeros(4)
        known.add_(unbacked(4))

    assert traced(run)[1].unknown == set()


def test_inference_mode_is_taken_apart_too():
    layer, x = torch.nn.Linear(16, 32), unbacked(8, 16)
    with torch.inference_mode():
        y, ledger = traced(lambda: layer(x))
    assert y.shape == (8, 32)
    assert "addmm" in {record.op for record in ledger.records}


def test_older_torch_is_traced_through_a_mode(monkeypatch):
    layer, x = torch.nn.Linear(16, 32), unbacked(8, 16)
    _, keyed = traced(lambda: layer(x).relu().sum().backward())
    monkeypatch.setattr(interception, "registered_key", lambda: None)
    layer.zero_grad()
    _, moded = traced(lambda: layer(x).relu().sum().backward())
    sizes = [[(r.op, r.size) for r in ledger.records] for ledger in (keyed, moded)]
    assert sizes[0] == sizes[1]


def test_views_share_and_die_with_their_storage():
    source = unbacked(8, 8)

    def run():
        base = source + 1
        view = base.t()[2:]
        del base
        return view

    view, ledger = traced(run)
    assert [e for e in ledger.events if e < 0] == []
    del view
    assert len([e for e in ledger.events if e < 0]) == 1


def test_composite_operators_take_the_path_of_a_real_run():
    # A linear layer on a transposed input adds its bias in place: one result, not two.
    layer, x = torch.nn.Linear(16, 32), unbacked(4, 8, 16).transpose(0, 1)
    with torch.no_grad():
        _, ledger = traced(lambda: layer(x))
    assert [r.op for r in ledger.records if r.size == 4 * 8 * 32 * 4] == ["mm"]


def test_out_arguments_are_resized():
    out, ledger = traced(lambda: torch.add(unbacked(3, 4), 1, out=torch.empty(0)))
    assert out.shape == (3, 4)
    assert 48 in {record.size for record in ledger.records}


def test_masks_that_are_known_give_their_shape():
    mask = torch.tensor([True, False, True, True])
    picked, _ = traced(lambda: (unbacked(4, 5)[mask], torch.masked_select(unbacked(4), mask)))
    assert [tuple(t.shape) for t in picked] == [(3, 5), (3,)]


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_choices_are_spread_evenly_and_differ_within_a_row(rows, size, data):
    k = data.draw(st.integers(1, size))
    found = spread((rows, k), torch.Size((rows, size)), -1)
    assert all(len(set(row)) == k for row in found.tolist())
    counts = torch.bincount(found.flatten(), minlength=size)
    assert int(counts.max() - counts.min()) <= 1
