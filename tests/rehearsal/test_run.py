"""A rehearsal has the simulated Mac's memory to the byte, ends after its steps, undoes all of it."""

import builtins
import os

import pytest
import torch
from torch import nn

import mpskit
from mpskit.dispatch.dataless_tensors import is_dataless

pytestmark = pytest.mark.needs_torch("simulation")


def perceptron(optimizer=torch.optim.AdamW, steps=3, batch=64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 10)).to("mps")
    chosen = optimizer(model.parameters(), 1e-3)
    for _ in range(steps):
        inputs, labels = torch.randn(batch, 256).to("mps"), torch.randint(10, (batch,)).to("mps")
        loss = nn.functional.cross_entropy(model(inputs), labels)
        chosen.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
    return model


def convolution(size=32):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    model.to("mps")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        model(torch.randn(8, 3, size, size, device="mps")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def recurrent():
    model = nn.LSTM(64, 128, 2).to("mps")
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        model(torch.randn(16, 8, 64, device="mps"))[0].square().mean().backward()
        optimizer.step()


def autocast():
    model = nn.Sequential(nn.Linear(256, 512), nn.LayerNorm(512), nn.Linear(512, 8)).to("mps")
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        with torch.autocast("mps", dtype=torch.bfloat16):
            loss = model(torch.randn(64, 256, device="mps")).float().square().mean()
        loss.backward()
        optimizer.step()


# The CPU's LSTM layer tells its kernel's workspace only when it runs.
LSTM = pytest.mark.from_torch("2.13", "a rehearsed LSTM is not 4.6% short")


@pytest.mark.parametrize(
    ("loop", "off"),
    [
        (perceptron, 0),
        (convolution, 0),
        pytest.param(recurrent, 0.005, marks=LSTM),
        (autocast, 0),
    ],
)
def test_memory_is_that_of_real_numbers(loop, off):
    with mpskit.simulate("m1-8gb") as mac:
        loop()
        live, driver = mac.peak_allocated_bytes, mac.peak_driver_bytes
    with mpskit.rehearse("m1-8gb", steps=None) as run:
        loop()
    assert run.report.peak_bytes == pytest.approx(live, rel=off, abs=0)
    assert run.report.driver_bytes == driver
    assert (run.report.verdict, run.report.ended) == ("fits", "end")


def test_nothing_has_memory_and_nothing_stays():
    before = vars(torch.Tensor)["__repr__"], builtins.open, os.stat, torch.save
    with mpskit.rehearse("m3-max-64gb") as run:
        large = nn.Linear(1 << 16, 1 << 16)  # 16 GiB
        assert is_dataless(large.weight)
        assert large.to("mps").weight.device.type == "mps"
    assert run.report.peak_bytes > 16 << 30
    assert (vars(torch.Tensor)["__repr__"], builtins.open, os.stat, torch.save) == before
    assert torch.ones(2).sum().item() == 2


def test_it_ends_after_its_steps_past_except_exception():
    seen = []

    def train():
        try:
            perceptron(steps=100)
        except Exception:  # what a trainer catches
            seen.append("caught")
        finally:
            seen.append("finally")

    with mpskit.rehearse(steps=2) as run:
        train()
    assert seen == ["finally"]
    assert (run.report.steps, run.report.ended) == (2, "steps")


def test_two_optimizers_come_to_the_same_number():
    models = [nn.Linear(8, 8) for _ in range(2)]
    counts = [0, 0]
    with mpskit.rehearse(steps=2) as run:
        optimizers = [torch.optim.SGD(model.to("mps").parameters(), 0.1) for model in models]
        for _ in range(9):
            for number, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
                model(torch.ones(4, 8, device="mps")).sum().backward()
                counts[number] += 1
                optimizer.step()
    assert counts == [2, 2]
    assert run.report.steps == 2


def test_an_error_of_the_script_is_raised_and_reported():
    run = mpskit.rehearse()
    with pytest.raises(ZeroDivisionError), run:
        int(torch.ones(4, device="mps").dim()) // 0
    (found,) = run.report.of("stops")
    assert (found.kind, run.report.ended) == ("error", "error")
    assert found.file.endswith("test_run.py")
    assert not run.report.runs


def test_a_decorated_function_returns_the_report_of_each_call():
    @mpskit.rehearse(["m1-8gb", "m1-16gb"], steps=2)
    def train(width, *, steps):
        """Train."""
        model = nn.Linear(width, 8).to("mps")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(steps):
            model(torch.ones(4, width, device="mps")).sum().backward()
            optimizer.step()
        if steps == 1:
            raise ValueError("the function's own")

    small, large = train(8, steps=9), train(800, steps=9)
    assert (small.steps, small.ended, len(small.machines)) == (2, "steps", 2)
    assert small.peak_bytes < large.peak_bytes
    assert (train.__name__, train.__doc__) == ("train", "Train.")
    with pytest.raises(ValueError, match="the function's own"):
        train(8, steps=1)


def test_it_decorates_plain_functions_only():
    async def later():
        pass

    for given in (later, nn.Linear, 3):
        with pytest.raises(mpskit.ArgumentTypeError, match="rehearse decorates plain functions"):
            mpskit.rehearse()(given)


def test_the_report_waits_for_the_end():
    run = mpskit.rehearse()
    with pytest.raises(mpskit.SimulationError, match="has not ended"):
        run.report


def test_several_machines_from_one_run():
    with mpskit.rehearse(["m1-8gb", "m1-16gb", "m3-max-64gb"]) as run:
        held = torch.empty(3 << 30, dtype=torch.float32, device="mps")  # 12 GiB
    del held
    verdicts = {one.machine: one.verdict for one in run.report.machines}
    assert verdicts == {"m1-8gb": "does not fit", "m1-16gb": "does not fit", "m3-max-64gb": "fits"}
    assert len({one.peak_bytes for one in run.report.machines}) == 1
    assert run.report.machines[0].refused.file.endswith("test_run.py")
    assert all(one.limit_bytes > one.usable_bytes for one in run.report.machines)


def test_the_true_peak_is_known_beyond_the_first_refusal():
    with mpskit.rehearse(["m1-8gb", "m1-16gb"]) as run:
        held = [torch.empty(1 << 29, device="mps") for _ in range(20)]  # 2 GiB each
    del held
    assert [one.peak_bytes for one in run.report.machines] == [40 << 30] * 2


def test_a_second_machine_is_as_if_it_were_the_first():
    def figures(machines, index):
        with mpskit.rehearse(machines, steps=None) as run:
            kept = [torch.empty(1 << 28, device="mps") for _ in range(7)]
            del kept[::2]
            torch.mps.empty_cache()
            kept += [torch.empty(3 << 27, device="mps") for _ in range(2)]
        one = run.report.machines[index]
        return one.verdict, one.peak_bytes, one.driver_bytes

    assert figures(["m3-max-64gb", "m1-8gb"], 1) == figures(["m1-8gb"], 0)


def test_all_machines():
    with mpskit.rehearse("all") as run:
        torch.ones(4, device="mps")
    assert len(run.report.machines) > 40
    assert {one.verdict for one in run.report.machines} == {"fits"}


def test_a_hosted_runner_is_not_among_all_and_allocates_nothing():
    runner = "github-macos-15-vm"
    assert runner not in {one.name for one in mpskit.rehearsal.chosen_machines("all")}
    for machines in ([runner, "m1-8gb"], ["m1-8gb", runner]):
        with mpskit.rehearse(machines) as run:
            torch.ones(4, device="mps")
        verdicts = {one.machine: one.verdict for one in run.report.machines}
        assert verdicts == {"m1-8gb": "fits", runner: "does not fit"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"machine": "m1-9gb"}, mpskit.ArgumentError),
        ({"machine": []}, mpskit.ArgumentError),
        ({"machine": 8}, mpskit.ArgumentTypeError),
        ({"steps": 0}, mpskit.ArgumentError),
        ({"steps": "3"}, mpskit.ArgumentTypeError),
        ({"steps": True}, mpskit.ArgumentTypeError),
        ({"fallback": 1}, mpskit.ArgumentTypeError),
    ],
)
def test_bad_input(arguments, error):
    with pytest.raises(error if error is mpskit.ArgumentTypeError else mpskit.MpskitError):
        mpskit.rehearse(**arguments)


def test_the_document_has_what_the_issue_names():
    with mpskit.rehearse(steps=2) as run:
        perceptron()
    document = run.report.to_json()
    assert document["schema"] == 1
    top = {"verdict", "peak_bytes", "driver_bytes", "seconds", "steps", "findings", "machines"}
    assert top <= document.keys()
    assert run.report.launches > 30
    assert document["seconds"] is None  # no times of perceptrons were published
    assert "no range, for want of published times" in str(run.report)


def test_the_time_of_a_step_is_a_range_with_its_sources():
    def report(machine):
        with mpskit.rehearse(machine, steps=2) as run:
            convolution(512)
        return run.report

    slow, fast = report("m1-8gb"), report("m3-max-64gb")
    assert 0 < slow.seconds.low < slow.seconds.middle < slow.seconds.high
    assert fast.seconds.middle < slow.seconds.middle
    assert slow.time.sources
    document = slow.to_json()
    assert document["seconds"] == document["time"]["step"] == slow.seconds.model_dump()
    assert f"{slow.seconds} a step on M1" in str(slow)


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    with mpskit.rehearse() as run:
        perceptron()
    assert run.report.plot(tmp_path / "x.png").stat().st_size > 10_000
