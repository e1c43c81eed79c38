"""A validation of simulated Macs: it holds, and each planted deviation is named by its check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpskit import simulate
from mpskit.cli.main import main
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceUnavailableError
from mpskit.validation import Finding, Outcome, Validation, coverage, memory, speed, validate
from mpskit.validation import checks as listed
from mpskit.validation.names import NAMES

QUICK = [name for name in NAMES if name not in ("estimates", "known-issues")]


@pytest.fixture(autouse=True)
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let missing operators fail, whatever the suite's own environment says."""
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")


def failed(report: Validation) -> set[str]:
    return {f.check for f in report.findings if f.outcome is Outcome.DID_NOT_HOLD}


@pytest.mark.parametrize("machine", ["m1-8gb", "m3-max-64gb"])
def test_a_simulated_mac_holds_what_mpskit_says(machine):
    with simulate(machine):
        report = validate(checks=QUICK, processes=False)
    assert report.holds, str(report)
    assert report.simulated
    assert {f.check for f in report.findings} == set(QUICK)
    tried = [f for f in report.findings if f.outcome is Outcome.HELD]
    assert len(tried) > 60


@pytest.mark.full  # measures every model of the check; a planted deviation, below, measures one
def test_estimates_hold_too():
    with simulate("m1-8gb"):
        report = validate(checks=["estimates"], processes=False)
    assert [f.outcome for f in report.findings] == [Outcome.HELD] * len(memory.MODELS)


def replace_backend(monkeypatch, name, value):
    """Let the machine answer otherwise than it does."""
    real = memory.backend

    def other(device):
        asked = real(device)
        monkeypatch.setattr(asked, name, lambda: value(asked), raising=True)
        return asked

    monkeypatch.setattr(memory, "backend", other)


def plant_working_set(monkeypatch):
    replace_backend(monkeypatch, "recommended_bytes", lambda _: 5 << 30)


def plant_largest_buffer(monkeypatch):
    replace_backend(monkeypatch, "max_buffer_bytes", lambda _: 1 << 30)


def plant_allocator(monkeypatch):
    monkeypatch.setattr(memory, "LADDER", (256, 5 << 20))
    real = memory.allocator_for

    def other(kind, **more):
        model = real(kind, **more)
        allocate = model.allocate
        model.allocate = lambda size: allocate(2 * size)
        return model

    monkeypatch.setattr(memory, "allocator_for", other)


def plant_oom_text(monkeypatch):
    monkeypatch.setattr(memory, "_provoked", lambda _: RuntimeError("MPS is full, sorry"))


def plant_missing_operator(monkeypatch):
    def missing(_):
        raise NotImplementedError("The operator 'aten::cumsum' is not implemented")

    monkeypatch.setitem(coverage.OPERATORS, torch.ops.aten.cumsum.default, missing)


def plant_new_operator(monkeypatch):
    monkeypatch.setitem(coverage.OPERATORS, torch.ops.aten.linalg_eig.default, lambda x: x)


def plant_dtype(monkeypatch):
    real = coverage.precision_for

    def other(device):
        found = real(device)
        return found.model_copy(update={"storage_dtypes": (*found.storage_dtypes, "float64")})

    monkeypatch.setattr(coverage, "precision_for", other)


def plant_autocast(monkeypatch):
    monkeypatch.setitem(coverage._LISTED, "softmax", lambda x: x.half())


def plant_estimate(monkeypatch):
    monkeypatch.setattr(memory, "MODELS", dict([next(iter(memory.MODELS.items()))]))
    real = memory._measured
    monkeypatch.setattr(memory, "_measured", lambda *rest: int(1.2 * real(*rest)))


def plant_loader(monkeypatch):
    real = torch.utils.data.DataLoader.__iter__
    monkeypatch.setattr(
        torch.utils.data.DataLoader, "__iter__", lambda self: iter(list(real(self))[1:])
    )


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (plant_working_set, "working-set"),
        (plant_largest_buffer, "working-set"),
        (plant_allocator, "allocator"),
        (plant_oom_text, "out-of-memory"),
        (plant_missing_operator, "operators"),
        (plant_new_operator, "operators"),
        (plant_dtype, "dtypes"),
        (plant_autocast, "autocast"),
        (plant_estimate, "estimates"),
        (plant_loader, "loader"),
    ],
)
def test_each_planted_deviation_is_named_by_its_check(monkeypatch, plant, check):
    with simulate("m1-8gb"):
        plant(monkeypatch)
        names = [name for name in NAMES if name != "estimates" or check == "estimates"]
        report = validate(checks=[n for n in names if n != "known-issues"], processes=False)
    assert failed(report) == {check}
    assert not report.holds
    assert "expected" in str(report)


def test_predictions_are_put_beside_times(monkeypatch):
    """Only a machine that is not simulated has times; here they are given."""
    monkeypatch.setattr(speed, "replaced_readings", lambda: None)
    made = {}

    def taken(steps, **_):
        return {name: made[name] for name in steps}

    class Timed:
        def __init__(self, median):
            self.median = median

    monkeypatch.setattr(speed, "time_in_turn", taken)
    monkeypatch.setattr(speed, "step_on", lambda *_, **__: None)
    one = {"perceptron, 32 wide": speed.WORKLOADS["perceptron, 32 wide"]}
    monkeypatch.setattr(speed, "WORKLOADS", one)
    with simulate("m1-8gb"):
        made |= {"cpu": Timed(1.0), "mps": Timed(5.0)}
        right = list(speed.times("mps"))
        made |= {"cpu": Timed(5.0), "mps": Timed(1.0)}
        wrong = list(speed.times("mps"))
    assert [f.outcome for f in right] == [Outcome.HELD] * 2
    assert Outcome.DID_NOT_HOLD in {f.outcome for f in wrong}


def test_the_cpu_has_little_to_try():
    report = validate("cpu", checks=QUICK, processes=False)
    assert report.holds
    assert not report.simulated


def broken(_):
    raise RuntimeError("a driver that gives up")


def test_a_check_that_fails_costs_only_itself(monkeypatch):
    monkeypatch.setitem(listed.CHECKS, "allocator", broken)
    with simulate("m1-8gb"):
        report = validate(checks=["allocator", "dtypes"], processes=False)
    assert report.findings[0].outcome is Outcome.NOT_TRIED
    assert "a driver that gives up" in report.findings[0].found
    assert report.findings[-1].outcome is Outcome.HELD


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "ended without an answer"),
        ("import time; time.sleep(60)", "no answer within"),
        ("print('mpskit-findings:{')", "ended without an answer"),
    ],
)
def test_a_process_that_dies_or_hangs_is_told(monkeypatch, code, said):
    monkeypatch.setattr("mpskit.validation.run._CHILD", code)
    report = validate("cpu", checks=["dtypes"], seconds=3)
    assert report.findings[0].outcome is Outcome.NOT_TRIED
    assert said in report.findings[0].found
    assert report.holds


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"checks": ["speed"]}, ArgumentError),
        ({"checks": "dtypes"}, ArgumentTypeError),
        ({"device": "cuda"}, DeviceUnavailableError),
        ({"device": 3}, ArgumentTypeError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error):
        validate(**arguments)


@pytest.mark.full  # five processes that import torch
@pytest.mark.needs_torch("simulation")
def test_the_command_runs_in_processes_on_a_simulated_mac():
    words = ["-m", "mpskit", "validate", "--checks", "dtypes", "allocator", "--json"]
    command = [sys.executable, "-m", "mpskit", "simulate", "m2-16gb", "--", *words]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=300
    )
    document = json.loads(ended.stdout)
    assert (ended.returncode, document["holds"], document["simulated"]) == (0, True, True)
    assert {f["check"] for f in document["findings"]} == {"dtypes", "allocator"}


def test_the_report_names_nobody(monkeypatch, capsys):
    def telling(_):
        raise RuntimeError(f"no such file: {Path.home()}/secret")

    monkeypatch.setitem(listed.CHECKS, "dtypes", telling)
    report = validate("cpu", checks=["dtypes"], processes=False)
    assert str(Path.home()) not in str(report)
    assert main(["validate", "--device", "cpu", "--checks", "loader"]) == 0
    assert "samples that arrive" in capsys.readouterr().out


def test_a_report_is_a_value():
    finding = Finding(check="dtypes", claim="float64", outcome=Outcome.HELD, said="refused")
    report = validate("cpu", checks=["loader"], processes=False)
    assert Validation.model_validate(json.loads(report.model_dump_json())) == report
    assert str(finding) == "float64: refused"
