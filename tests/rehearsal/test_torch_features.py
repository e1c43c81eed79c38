"""Autocast, scalers, compile, pinned memory and collectives: what a Mac does otherwise is said."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mpskit
from mpskit.backends.versions import has, torch_version

pytestmark = [
    pytest.mark.needs_torch("simulation"),
    pytest.mark.filterwarnings("ignore:.*(autocast|GradScaler|pin_memory|CUDA)"),
]


def found(*, machine="m1-8gb", autocast=("mps", torch.bfloat16), scaler=None, prepare=None):
    """Return the findings of some steps, of which notes about writing and reading are left out."""
    kind, dtype = autocast
    with warnings.catch_warnings(), mpskit.rehearse(machine) as run:
        warnings.simplefilter("ignore")
        model = nn.Linear(8, 8).to("mps")
        model = model if prepare is None else prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler(scaler) if scaler else None
        for _ in range(9):
            with torch.autocast(kind, dtype=dtype):
                loss = model(torch.ones(4, 8, device="mps")).float().square().mean()
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
    return [one for one in run.report.findings if one.kind != "assumed"]


@pytest.mark.parametrize(
    ("given", "kind", "severity", "text"),
    [
        ({"autocast": ("cuda", torch.float16)}, "autocast", "slow", "does nothing on a Mac"),
        ({"autocast": ("mps", torch.float64)}, "autocast", "slow", "does not take torch.float64"),
        ({"autocast": ("mps", torch.float16)}, "autocast", "wrong", "without a gradient scaler"),
        (
            {"autocast": ("mps", torch.float16), "scaler": "cuda"},
            "autocast",
            "wrong",
            "a gradient scaler for cuda does nothing",
        ),
        ({"prepare": lambda model: torch.compile(model)}, "compile", "note", "rehearsed eagerly"),
    ],
)
def test_what_a_mac_does_otherwise_is_found_at_its_line(given, kind, severity, text):
    (one,) = found(**given)
    assert (one.kind, one.severity) == (kind, severity)
    assert text in one.text
    assert one.file.endswith("test_torch_features.py")
    assert one.fix


def test_what_a_mac_does_as_well_is_no_finding():
    assert found() == []
    scaled = found(autocast=("mps", torch.float16), scaler="mps")
    # The scaler reads whether gradients are finite, in each step.
    assert {one.kind for one in scaled if one.severity != "note"} <= {"host-sync"}


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_layers_meet_the_bugs_of_compiled_layers(compiled):
    with mpskit.rehearse("m1-8gb") as run:
        model = nn.LayerNorm(8).to("mps")
        if compiled:
            model = torch.compile(model)
        model(torch.ones(4, 8, device="mps"))
    uses = [use for use in run._shared.uses if use.op == "layer_norm"]
    assert {use.compiled for use in uses} == {compiled}


def test_pinned_memory():
    rows = [torch.ones(4) for _ in range(4)]
    with warnings.catch_warnings(), mpskit.rehearse() as run:
        warnings.simplefilter("ignore")
        for batch in DataLoader(rows, batch_size=2, pin_memory=True):
            batch.to("mps")
    (one,) = [one for one in run.report.findings if one.kind == "pinned-memory"]
    assert (one.severity, one.op) == ("note", "DataLoader")
    assert one.file.endswith("test_torch_features.py")


@pytest.mark.parametrize(
    "pin", [lambda: torch.ones(4).pin_memory(), lambda: torch.ones(4, pin_memory=True)]
)
def test_pinned_tensors_are_refused_where_this_torch_has_none_on_a_mac(pin):
    with mpskit.rehearse() as run:
        pin()
        pin()
    pinned = [one for one in run.report.of("stops") if one.kind == "pinned-memory"]
    assert [one.count for one in pinned] == (
        [] if has("mps.pinned_cpu_tensors", torch_version()) else [2]
    )
    assert all(one.fix == "pin_memory=False on a Mac" for one in pinned)


@pytest.mark.from_torch("2.11", "distributed operators raise on MPS")
def test_collectives(tmp_path):
    distributed = torch.distributed
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        with mpskit.rehearse() as run:
            tensor = torch.ones(4, device="mps")
            distributed.all_reduce(tensor)
            distributed.broadcast(tensor, 0)
            plain = torch.ones(4)
            distributed.all_reduce(plain)
    finally:
        distributed.destroy_process_group()
    found = run.report.of("stops")
    assert [(one.kind, one.op) for one in found] == [
        ("collective", "c10d::allreduce_"),
        ("collective", "c10d::broadcast_"),
    ]
    assert all("not currently implemented for the MPS device" in one.text for one in found)
