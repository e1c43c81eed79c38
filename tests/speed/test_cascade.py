"""Which of CPU and MPS a workload gets, and which step of the cascade answered."""

from __future__ import annotations

import json

import pytest
import torch

from mpskit import (
    TensorSpec,
    Workload,
    detect_host,
    get_optimal_device,
    known_issues,
    memory_budget,
    simulate,
)
from mpskit.device.codes import Basis, ReasonCode
from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError
from mpskit.memory import budget
from mpskit.speed import cascade, steps
from mpskit.speed.cascade import Facts, answer_by_facts

GIB = 1 << 30
SMALL = Workload(flops=1e6, bytes_moved=1e5, launches=40, op_class="mlp")
LARGE = Workload(flops=1e12, bytes_moved=1e10, launches=400, op_class="cnn")
UNSURE = Workload(flops=2e9, bytes_moved=2e8, launches=120, op_class="transformer")
M3 = Facts(chip="M3 Max", mps_usable=40 * GIB, cpu_usable=50 * GIB)


def needing(workload: Workload, gib: float) -> Workload:
    return workload.model_copy(update={"peak_bytes": int(gib * GIB)})


@pytest.mark.parametrize(
    ("workload", "facts", "device", "basis", "code", "sure"),
    [
        (SMALL, M3, "cpu", Basis.PREDICTED, ReasonCode.SLOWER, True),
        (LARGE, M3, "mps", Basis.PREDICTED, ReasonCode.SLOWER, True),
        (UNSURE, M3, None, Basis.PREDICTED, ReasonCode.SLOWER, False),
        (Workload(), M3, None, Basis.PREDICTED, ReasonCode.SLOWER, False),
        # memory goes before speed
        (needing(LARGE, 45), M3, "cpu", Basis.PREDICTED, ReasonCode.DOES_NOT_FIT, True),
        (needing(LARGE, 60), M3, "mps", Basis.PREDICTED, ReasonCode.SLOWER, True),
        (needing(LARGE, 45), Facts(chip="M3 Max"), "mps", Basis.PREDICTED, ReasonCode.SLOWER, True),
        # and so does what MPS cannot compute
        (LARGE.model_copy(update={"dtype": "float64"}), M3, "cpu", None, ReasonCode.NO_DTYPE, True),
        # times of before go before predictions
        (
            SMALL,
            Facts(chip="M3 Max", kept={"cpu": 2.0, "mps": 1.0}),
            "mps",
            Basis.MEASURED,
            ReasonCode.SLOWER,
            True,
        ),
        (LARGE, Facts(chip="M3 Max", kept={"cpu": 2.0}), "mps", Basis.PREDICTED, None, True),
        # a CPU step goes into the prediction
        (
            UNSURE.model_copy(update={"cpu_seconds": 2.0}),
            M3,
            "mps",
            Basis.MEASURED,
            ReasonCode.SLOWER,
            True,
        ),
    ],
)
def test_the_first_sure_step_answers(workload, facts, device, basis, code, sure):
    found = answer_by_facts(workload, facts)
    assert found.sure is sure
    assert device in (None, found.device)
    assert basis in (None, found.basis)
    assert code in (None, found.code)


def test_short_memory_is_said_of_the_device_that_was_chosen():
    tight = answer_by_facts(needing(LARGE, 39), M3)
    none = answer_by_facts(needing(LARGE, 60), M3)
    room = answer_by_facts(needing(LARGE, 10), M3)
    assert (tight.device, none.device, room.device) == ("mps", "mps", "mps")
    assert "is tight" in tight.advice[0]
    assert "is too small" in none.advice[0]
    assert room.advice == ()
    (exact,) = answer_by_facts(needing(LARGE, 40), M3).advice
    assert exact == "Memory is tight: the workload needs 40.00 GiB, and MPS can give 40.00 GiB."


@pytest.mark.parametrize(
    ("kept", "device", "reason"),
    [
        ({"cpu": 2.0, "mps": 1.0}, "mps", "MPS is 2.0 times faster"),
        ({"cpu": 1.0, "mps": 3.0}, "cpu", "the CPU is 3.0 times faster"),
    ],
)
def test_what_was_measured_is_told_of_the_faster_one(kept, device, reason):
    scarce = {"mps_usable" if device == "mps" else "cpu_usable": 40 * GIB}
    room = {"mps_usable": 50 * GIB, "cpu_usable": 50 * GIB}
    facts = Facts(chip="M3 Max", kept=kept, **(room | scarce))
    found = answer_by_facts(needing(LARGE, 39.9), facts)
    assert (found.device, found.basis) == (device, Basis.MEASURED)
    assert found.reason.startswith(reason)
    assert ("MPS" if device == "mps" else "the CPU") in found.advice[0]
    other = Facts(chip="M3 Max", kept=kept, mps_usable=50 * GIB, cpu_usable=50 * GIB)
    assert answer_by_facts(needing(LARGE, 39.9), other).advice == ()


def model(width: int = 16) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU())


def test_a_small_model_goes_to_the_cpu_and_says_why():
    with simulate("m1-8gb"):
        device, info = get_optimal_device(workload=(model(), torch.ones(4, 16)))
        assert (device.type, info.basis) == ("cpu", Basis.PREDICTED)
        assert "times faster for this workload from the step's counts" in info.reason
        mps = next(r for r in info.rejected if r.device == "mps")
        assert mps.code is ReasonCode.SLOWER
        assert mps.fix == "get_optimal_device(force_mps=True)"
        assert get_optimal_device().device.type == "mps"


def test_a_large_one_goes_to_mps():
    convolutions = torch.nn.Sequential(*[torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)])
    with simulate("m3-max-64gb"):
        info = get_optimal_device(workload=(convolutions, TensorSpec((8, 64, 64, 64)))).info
        assert (info.device, info.basis) == ("mps", Basis.PREDICTED)
        assert next(r for r in info.rejected if r.device == "cpu").code is ReasonCode.SLOWER


def test_what_does_not_fit_mps_goes_to_the_cpu():
    with simulate("m1-8gb"):
        mps, cpu = (memory_budget(d, live=False).usable_bytes for d in ("mps", "cpu"))
        assert mps < cpu
        between = LARGE.model_copy(update={"peak_bytes": (mps + cpu) // 2})
        info = get_optimal_device(workload=between).info
        mps = next(r for r in info.rejected if r.device == "mps")
    assert (info.device, mps.code) == ("cpu", ReasonCode.DOES_NOT_FIT)
    assert "GiB" in info.reason


def test_forcing_wins_and_hears_of_it():
    with simulate("m1-8gb"):
        info = get_optimal_device(force_mps=True, workload=SMALL).info
    assert (info.device, info.basis) == ("mps", Basis.FORCED)
    assert any("The CPU is predicted" in line for line in info.advice)


def test_a_workload_does_not_call_the_conservative_policy_into_question():
    with simulate("m3-max-64gb"):
        assert get_optimal_device(workload=LARGE, policy="conservative").device.type == "cpu"


def test_a_model_in_evaluation_mode_is_counted_without_gradients(monkeypatch):
    seen: list[Workload] = []
    real = cascade.weigh

    def watched(decision, asked, *rest):
        seen.append(asked.workload)
        return real(decision, asked, *rest)

    monkeypatch.setattr(cascade, "weigh", watched)
    with simulate("m1-8gb"):
        get_optimal_device(workload=(model().eval(), torch.ones(4, 16)))
        get_optimal_device(workload=(model(), torch.ones(4, 16)))
    assert [workload.training for workload in seen] == [False, True]
    assert seen[0].launches < seen[1].launches


def test_a_decision_is_remembered_by_the_counts(monkeypatch):
    calls: list[int] = []
    real = cascade.weigh
    monkeypatch.setattr(cascade, "weigh", lambda *rest: calls.append(1) or real(*rest))
    with simulate("m1-8gb"):
        for _ in range(3):
            get_optimal_device(workload=(model(), torch.ones(4, 16)))
        get_optimal_device(workload=(model(32), torch.ones(4, 32)))
    assert len(calls) == 2


def test_a_model_is_warned_of_the_bugs_that_it_meets():
    convolutions = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 3) for _ in range(2)])
    # This macOS has a bug of Conv3d with every torch.
    with simulate("m3-max-64gb", macos="26.2"):
        everything = get_optimal_device(force_mps=True).info.advice
        some = get_optimal_device(
            force_mps=True, workload=(convolutions, torch.ones(2, 8, 16, 16))
        ).info.advice
    bugs = [[line for line in lines if "Known bug" in line] for lines in (everything, some)]
    assert len(bugs[1]) < len(bugs[0])


@pytest.mark.parametrize(
    "frozen", [torch.nn.ReLU(), torch.nn.Linear(8, 8).requires_grad_(False), torch.nn.ReLU]
)
def test_a_model_without_parameters_to_train_is_only_called(frozen):
    with simulate("m1-8gb"):
        assert get_optimal_device(workload=(frozen, torch.ones(4, 8))).device.type == "cpu"
        assert known_issues(model=frozen, batch=torch.ones(4, 8)) is not None


def test_nothing_slow_runs_unasked(monkeypatch):
    def slow(*_):
        raise AssertionError("every process of the machine is listed, or a step is run")

    monkeypatch.setattr(budget, "largest_users", slow)
    monkeypatch.setattr(steps, "step_on", slow)
    with simulate("m1-8gb"):
        assert get_optimal_device(workload=(model(), torch.ones(4, 16))).device.type == "cpu"


def test_where_no_mps_is_in_question_nothing_is_weighed():
    assert get_optimal_device(workload=SMALL).device == get_optimal_device().device


@pytest.mark.parametrize("measure", ["cpu", "both"])
def test_what_is_not_sure_is_measured_if_that_was_asked_for(monkeypatch, measure):
    ran: list[str] = []
    real = steps.step_on

    def noted(device, *rest, **options):
        ran.append(device)
        return real(device, *rest, **options)

    monkeypatch.setattr(steps, "step_on", noted)
    monkeypatch.setattr(cascade, "_CPU_STEP_SECONDS", 0.01)
    monkeypatch.setattr(cascade, "_BOTH_SECONDS", 0.01)
    unsure = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(4)])
    before = unsure[0].weight.detach().clone()
    with simulate("m3-max-64gb"):
        asked = get_optimal_device(workload=(unsure, torch.ones(64, 1024)))
        assert not ran
        assert any("This is not sure" in line for line in asked.info.advice)
        info = get_optimal_device(workload=(unsure, torch.ones(64, 1024)), measure=measure).info
    assert ran[0] == "cpu"
    assert info.basis is Basis.MEASURED
    assert any("a simulated Mac has no times of its own" in line for line in info.advice)
    assert torch.equal(before, unsure[0].weight)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"workload": object()}, ArgumentTypeError),
        ({"workload": (1, 2, 3)}, ArgumentTypeError),
        ({"workload": (model(), torch.ones(4, 16)), "measure": "gpu"}, ArgumentError),
        ({"workload": SMALL, "measure": "cpu"}, ArgumentError),
        ({"measure": "cpu"}, ArgumentTypeError),
        ({"workload": (3, torch.ones(4, 16))}, ArgumentTypeError),
        ({"workload": (model(), torch.ones(4, 17))}, EstimateError),
    ],
)
def test_bad_arguments(arguments, error):
    with simulate("m1-8gb"), pytest.raises(error):
        get_optimal_device(**arguments)


def test_the_decision_is_a_value_that_can_be_stored():
    with simulate("m1-8gb"):
        info = get_optimal_device(workload=SMALL).info
    assert type(info).model_validate(json.loads(info.model_dump_json())) == info


def test_what_is_free_at_the_moment_decides_nothing(monkeypatch):
    """A decision holds for the program's life: it goes by what the machine has."""
    asked = []

    def usable(device, *, live=True):
        asked.append((device, live))

    monkeypatch.setattr(cascade, "usable_bytes", usable)
    cascade._read(Workload(peak_bytes=1), detect_host(), "2.13.0")
    assert asked == [("mps", False), ("cpu", False)]
    cascade._read(Workload(), detect_host(), "2.13.0")
    assert len(asked) == 2
