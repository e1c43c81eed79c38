"""Timing a step on several devices."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from mpskit import ArgumentError, ArgumentTypeError, TensorSpec, Workload, compare_devices, simulate
from mpskit.errors import DeviceUnavailableError
from mpskit.speed import compare
from mpskit.speed.compare import Comparison
from mpskit.speed.count import count_running
from mpskit.speed.evidence import find_evidence
from mpskit.speed.steps import is_training, step_on
from mpskit.speed.timing import Timing, time_in_turn, timing_of


def make_step(device: str):
    model = torch.nn.Linear(32, 32).to(device)
    x = torch.ones(8, 32, device=device)
    return lambda: model(x).sum().backward()


def test_two_devices_are_timed_and_ranked():
    ran: list[str] = []

    def make(device):
        ran.append(device)
        return make_step(device)

    with simulate("m1-8gb"):
        found = compare_devices(make, seconds=0.01)
    assert ran == ["cpu", "mps"]
    assert {timing.device for timing in found.timings} == {"cpu", "mps"}
    assert found.timings[0].median <= found.timings[1].median
    assert found.winner == found.timings[0].device
    assert found.speedup >= 1
    assert found.memory_bytes.keys() == {"cpu", "mps"}
    assert found.memory_bytes["mps"] > 0
    assert not found.kept
    assert any("are not kept" in note for note in found.notes)


def test_on_a_machine_without_gpu_the_cpu_is_timed_alone():
    found = compare_devices(make_step, seconds=0.01)
    assert [timing.device for timing in found.timings] == ["cpu"]
    assert (found.speedup, found.clear, found.notes) == (1.0, True, ())


def test_the_order_is_a_b_b_a(monkeypatch):
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in ("cpu", "other")}
    monkeypatch.setattr("mpskit.speed.timing._clock", lambda _: _ticking())
    time_in_turn(steps, seconds=0.0)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["cpu", "other", "cpu", "other", "cpu"]  # warming both up, then A B B A


def _ticking():
    ticks = iter(range(10**9))
    return lambda: float(next(ticks))


@pytest.mark.parametrize(
    ("times", "median", "low", "high"),
    [
        ([1.0], 1.0, 1.0, 1.0),
        ([1.0, 3.0], 2.0, 1.0, 3.0),
        ([float(n) for n in range(101)], 50.0, 40.0, 61.0),
        ([2.0] * 50, 2.0, 2.0, 2.0),
    ],
)
def test_the_interval_of_the_median(times, median, low, high):
    found = timing_of("cpu", times, 9.0)
    assert (found.median, found.low, found.high) == (median, low, high)
    assert (found.runs, found.first) == (len(times), 9.0)


def timing(device: str, low: float, median: float, high: float) -> Timing:
    return Timing(device=device, median=median, low=low, high=high, runs=9, first=median)


def test_overlapping_intervals_are_no_clear_win(monkeypatch):
    made = {"cpu": timing("cpu", 1, 2, 3), "mps": timing("mps", 2.5, 4, 5)}
    monkeypatch.setattr(compare, "time_in_turn", lambda *_, **__: made)
    with simulate("m1-8gb"):
        unclear = compare_devices(make_step)
        made["mps"] = timing("mps", 3.5, 4, 5)
        clear = compare_devices(make_step)
    assert (unclear.winner, unclear.speedup, unclear.clear) == ("cpu", 2.0, False)
    assert clear.clear
    assert "no clear winner" in str(unclear)
    assert "no clear winner" not in str(clear)


def test_times_of_a_real_machine_are_kept_and_found_by_a_traced_workload(monkeypatch, tmp_path):
    monkeypatch.delenv("MPSKIT_NO_CACHE", raising=False)
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(tmp_path))
    model, batch = torch.nn.Linear(64, 64), TensorSpec((32, 64))
    made = {"cpu": timing("cpu", 1, 2, 3), "mps:0": timing("mps:0", 4, 5, 6)}

    def timed(steps, **_):
        for step in steps.values():
            step()
        return made

    monkeypatch.setattr(compare, "time_in_turn", timed)
    monkeypatch.setattr(compare, "_memory", lambda *_: 0)
    monkeypatch.setattr(compare, "_devices", lambda _: ["cpu"])
    assert compare_devices(lambda device: step_on(device, model, batch)).kept
    kept = find_evidence(Workload.of(model, batch), torch.__version__)
    assert kept.seconds == {"cpu": 2, "mps": 5}


def test_a_running_step_is_counted_as_its_trace_is():
    model, batch = (
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()),
        TensorSpec((8, 64)),
    )
    step = step_on("cpu", model, batch)
    step()
    ran, traced = count_running(step), Workload.of(model, batch)
    assert ran.flops == pytest.approx(traced.flops, rel=1e-3)
    assert ran.bytes_moved == pytest.approx(traced.bytes_moved, rel=1e-3)
    assert (ran.dtype, ran.training) == (traced.dtype, True)


def test_a_comparison_is_a_value_with_a_picture(tmp_path):
    found = Comparison(
        timings=(timing("mps", 1e-3, 2e-3, 3e-3), timing("cpu", 4e-3, 5e-3, 6e-3)),
        memory_bytes={"mps": 1 << 20, "cpu": 0},
        winner="mps",
        speedup=2.5,
        clear=True,
        kept=False,
    )
    assert Comparison.model_validate(json.loads(found.model_dump_json())) == found
    assert "mps is 2.50 times faster" in str(found)
    assert found.plot(tmp_path / "times.png").stat().st_size > 1000
    with pytest.raises(ArgumentError, match="cannot be written"):
        found.plot(tmp_path / "none" / "times.png")


@pytest.mark.parametrize(
    ("make", "devices", "error"),
    [
        (None, None, ArgumentTypeError),
        (make_step, "cpu", ArgumentTypeError),
        (make_step, [], ArgumentError),
        (make_step, ["cpu", "cpu"], ArgumentError),
        (make_step, ["gpu"], ArgumentError),
        (make_step, ["cpu", "cuda"], DeviceUnavailableError),
        (lambda _: None, None, ArgumentTypeError),
    ],
)
def test_bad_arguments(make, devices, error):
    with pytest.raises(error):
        compare_devices(make, devices)


def test_a_failing_step_says_itself_what_is_wrong():
    def make(_):
        return lambda: torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="size"):
        compare_devices(make)


class TestStepOn:
    """Real steps on copies."""

    def test_the_callers_model_stays_as_it_is(self):
        model = torch.nn.Linear(8, 8)
        before = model.weight.detach().clone()
        step_on("cpu", model, torch.ones(4, 8))()
        assert torch.equal(model.weight, before)
        assert model.weight.grad is None

    def test_without_gradients(self):
        model = torch.nn.Linear(8, 8).eval()
        seen: list[bool] = []
        model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        step_on("cpu", model, TensorSpec((4, 8)), training=False)()
        assert seen == [False]
        assert not is_training(model)

    def test_a_step_of_ones_own_gets_its_optimizer(self):
        seen = []

        def own(model, batch, optimizer):
            seen.append((type(model), batch.shape, type(optimizer)))

        model = torch.nn.Linear(8, 8)
        step_on("cpu", model, TensorSpec((4, 8)), train_step=own, optimizer="SGD")()
        assert seen == [(torch.nn.Linear, (4, 8), torch.optim.SGD)]

    def test_half_precision_weights_and_integers(self):
        model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 8))
        step_on("cpu", model, TensorSpec((2, 3), dtype="int64"), precision="bf16")()

    def test_what_cannot_be_copied_is_refused(self):
        model = torch.nn.Linear(2, 2)
        model.lock = threading.Lock()
        with pytest.raises(ArgumentTypeError, match="cannot be copied"):
            step_on("cpu", model, torch.ones(1, 2))

    def test_an_optimizer_of_the_callers_own_is_refused(self):
        model = torch.nn.Linear(2, 2)
        with pytest.raises(ArgumentError, match="caller's own parameters"):
            step_on("cpu", model, torch.ones(1, 2), optimizer=torch.optim.SGD(model.parameters()))

    def test_a_name_that_is_no_optimizer(self):
        with pytest.raises(ArgumentError, match="no optimizer 'Adamw'"):
            step_on("cpu", torch.nn.Linear(2, 2), torch.ones(1, 2), optimizer="Adamw")

    def test_what_is_no_model(self):
        with pytest.raises(ArgumentTypeError, match="a model is"):
            step_on("cpu", 3, torch.ones(1, 2))
