"""What to change: the scaled figures are near those of a run that is changed so."""

import pytest
import torch
from torch import nn

import mpskit

pytestmark = pytest.mark.needs_torch("simulation")

# What a change's text begins with.
HALF, TWICE, CHECKPOINTING, BF16, LORA = (
    "half the batch",
    "half the batch, and twice the gradient accumulation steps",
    "gradient checkpointing",
    "all weights in bf16",
    "LoRA",
)

# Too large for an M1 with 8 GB by the heaps of torch 2.13 and by the fuller ones of 2.14, under
# autocast too.
BATCH = 20480


class Adapted(nn.Linear):
    """A frozen layer with an adapter."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.requires_grad_(False)
        self.down, self.up = nn.Linear(sizes[0], 8), nn.Linear(8, sizes[1])

    def forward(self, given):
        return super().forward(given) + self.up(self.down(given))


def train(batch, *, dtype=None, accumulate=1, autocast=False, trained=True, checkpoint=False):
    linear = nn.Linear if trained else Adapted
    layers = [part for _ in range(6) for part in (linear(4096, 4096), nn.GELU())]
    model = nn.Sequential(*layers).to("mps", dtype)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(3):
        for _ in range(accumulate):
            inputs = torch.randn(batch, 4096).to("mps", dtype)
            with torch.autocast("mps", torch.bfloat16, enabled=autocast):
                if checkpoint:
                    out = torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=False)
                else:
                    out = model(inputs)
                out.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def rehearsed(machine="m1-8gb", batch=BATCH, **how):
    with mpskit.rehearse(machine) as run:
        train(batch, **how)
    return run.report


def chosen(report, what):
    exact = {HALF, TWICE, BF16}
    return next(
        (
            one
            for one in report.changes
            if one.what == what or (what not in exact and one.what.startswith(what))
        ),
        None,
    )


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        (HALF, {"batch": BATCH // 2}),
        (TWICE, {"batch": BATCH // 2, "accumulate": 2}),
        (BF16, {"dtype": torch.bfloat16}),
        (LORA, {"trained": False}),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_figures_are_near_those_of_the_changed_run(what, changed, autocast):
    report = rehearsed(autocast=autocast)
    assert report.verdict != "fits"
    found = chosen(report, what)
    true = rehearsed(autocast=autocast, **changed)
    assert found.scaled
    most = 1.1 if what in {HALF, TWICE} else 1.3  # bf16 weights spare autocast's other casts too
    assert 0.9 * true.peak_bytes <= found.peak_bytes <= most * true.peak_bytes
    assert abs(found.driver_bytes - true.driver_bytes) <= 1.1 * 2**30  # one heap of large buffers
    assert "m1-8gb" not in found.fits or true.verdict == "fits"


def test_what_is_named_and_what_is_left_out():
    assert [one.what.split(":")[0] for one in rehearsed("m3-max-64gb").changes] == []
    named = chosen(rehearsed(), CHECKPOINTING)
    assert (named.peak_bytes, named.scaled, named.fits) == (None, False, ())
    assert "no figure without the script" in str(named)
    checkpointed = rehearsed(checkpoint=True)
    assert chosen(checkpointed, CHECKPOINTING) is None
    assert chosen(checkpointed, HALF)
    single = rehearsed(batch=1, dtype=torch.bfloat16, machine="github-macos-15-vm")
    assert [chosen(single, one) for one in (HALF, TWICE, BF16)] == [None] * 3
    adapter = rehearsed(trained=False, batch=1 << 15)
    assert chosen(adapter, LORA) is None


def test_several_machines_and_the_text():
    report = rehearsed(["m1-8gb", "m1-16gb", "m3-max-64gb"], batch=1 << 15)
    half = chosen(report, HALF)
    assert "m3-max-64gb" not in half.fits
    assert "what to change, to take less memory:" in str(report)
    assert report.to_json()["changes"][0]["what"] == HALF


def test_inference_has_no_gradients_to_save():
    with mpskit.rehearse("m1-8gb") as run, torch.no_grad():
        model = nn.Sequential(nn.Linear(1 << 14, 1 << 14), nn.Linear(1 << 14, 1 << 14)).to("mps")
        model(torch.ones(1 << 16, 1 << 14, device="mps"))
    assert [one.what for one in run.report.changes] == [HALF, BF16]
