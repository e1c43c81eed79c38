"""Timing a step on several devices."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from mpskit import (
    ArgumentError,
    ArgumentTypeError,
    TensorSpec,
    Workload,
    compare_devices,
    diagnose,
    get_optimal_device,
    simulate,
)
from mpskit.errors import DeviceUnavailableError
from mpskit.speed import compare
from mpskit.speed.compare import Comparison
from mpskit.speed.count import count_running
from mpskit.speed.evidence import find_evidence, keep_evidence
from mpskit.speed.steps import step_on
from mpskit.speed.timing import Timing


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
    assert str(found).splitlines() == [
        "mps: 2 ms a step (1 ms to 3 ms, 9 runs), 1.00 MiB",
        "cpu: 5 ms a step (4 ms to 6 ms, 9 runs), 0 bytes",
        "mps is 2.50 times faster",
    ]
    silent = found.model_copy(update={"memory_bytes": {}})
    assert str(silent).splitlines()[0] == "mps: 2 ms a step (1 ms to 3 ms, 9 runs)"
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
        (torch.nn.Linear(2, 2), None, ArgumentTypeError),
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


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ArgumentError), (float("nan"), ArgumentError), ("2", ArgumentTypeError)],
)
@pytest.mark.parametrize("call", [compare_devices, diagnose])
def test_seconds_are_above_zero(call, seconds, error):
    with pytest.raises(error, match="seconds"):
        call(make_step, seconds=seconds)


def test_new_times_count_in_the_process_that_took_them(monkeypatch, tmp_path):
    monkeypatch.delenv("MPSKIT_NO_CACHE", raising=False)
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(tmp_path))
    before = get_optimal_device().info
    assert get_optimal_device().info is before
    assert keep_evidence(Workload(flops=1e9), {"cpu": 1.0, "mps": 2.0}, "2.13.0")
    assert get_optimal_device().info is not before


@pytest.mark.parametrize(
    ("peak", "footprints", "taken"),
    [(5, [1, 9], 5), (None, [5, 9, 7], 4), (None, [], 0), (None, [None, None], 0)],
)
def test_what_a_step_takes_of_a_device(monkeypatch, peak, footprints, taken):
    """A device without figures of its own is told by the process's footprint."""

    class Watched(contextlib.AbstractContextManager):
        peak_bytes = peak
        timeline = tuple(SimpleNamespace(footprint_bytes=size) for size in footprints)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(compare, "MemoryMonitor", lambda *_, **__: Watched())
    assert compare._memory(lambda: None, "mps") == taken
