"""The PYTORCH_* variables: what is set, what it means, and setting them in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit import configure_environment, current_environment
from mpskit.allocator.watermarks import FALLBACK, HIGH, LOW
from mpskit.backends import memory as backends
from mpskit.backends.kinds import Api
from mpskit.environment.rules import judge, variables
from mpskit.errors import ArgumentError, ArgumentTypeError, MpskitError, SettingsError, TooLateError
from mpskit.host.machines import find_machine
from mpskit.system.machine import replace_readings

METAL, FAST = "PYTORCH_MPS_PREFER_METAL", "PYTORCH_MPS_FAST_MATH"
GIB = 2**30


@pytest.fixture(autouse=True)
def _clean():
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PYTORCH_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were not imported yet."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.fixture(params=["m1-16gb"])
def mac(request: pytest.FixtureRequest, early: None):
    previous = replace_readings(find_machine(request.param).readings())
    yield find_machine(request.param)
    replace_readings(previous)


# --- explaining -------------------------------------------------------------------------------

# (variables, the one judged, words of its effect, words of its problem or None)
JUDGED = [
    ({HIGH: "1.5"}, HIGH, "1.5 times", None),
    ({HIGH: "0.0"}, HIGH, "no limit", None),
    ({HIGH: "0.8", LOW: "0.7"}, HIGH, "0.8 times", None),
    ({HIGH: "0.8", LOW: "0.8"}, LOW, "from 0.8", None),
    ({HIGH: "0.7"}, HIGH, "error", "invalid low watermark ratio 1.4"),
    ({HIGH: "0.8", LOW: "1.2"}, LOW, "error", "invalid low watermark ratio 1.2"),
    ({LOW: "1.8"}, LOW, "error", "invalid low watermark ratio 1.8"),
    ({HIGH: "0", LOW: "1.9"}, LOW, "from 1.9", None),
    ({LOW: "0"}, LOW, "no garbage collection", None),
    ({HIGH: "abc"}, HIGH, "no limit at all", "reads as 0.0"),
    ({HIGH: ""}, HIGH, "no limit at all", "reads as 0.0"),
    ({HIGH: "80%"}, HIGH, "error", "invalid high watermark ratio 80"),
    ({HIGH: "-1"}, HIGH, "error", "invalid high watermark ratio -1"),
    ({HIGH: "nan"}, HIGH, "error", "invalid high watermark ratio nan"),
    ({HIGH: "inf"}, HIGH, "error", "invalid high watermark ratio inf"),
    ({HIGH: "1.5GB"}, HIGH, "1.5", "drops the rest"),
    ({HIGH: " 1.5 "}, HIGH, "1.5 times", None),
    ({FALLBACK: "1"}, FALLBACK, "on", None),
    ({FALLBACK: "0"}, FALLBACK, "off", None),
    ({FALLBACK: "true"}, FALLBACK, "error", "import torch"),
    ({FALLBACK: ""}, FALLBACK, "error", "import torch"),
    ({FALLBACK: "99999999999"}, FALLBACK, "error", "import torch"),
    ({FALLBACK: "1x"}, FALLBACK, "on", "as 1"),
    ({METAL: "1"}, METAL, "on", None),
    ({METAL: "0"}, METAL, "on", "whenever it is set"),
    ({METAL: ""}, METAL, "on", "whenever it is set"),
    ({FAST: "0"}, FAST, "off", None),
    ({FAST: "1"}, FAST, "on", None),
    ({FAST: "false"}, FAST, "on", "any value but 0"),
    ({"PYTORCH_DEBUG_MPS_ALLOCATOR": "0x1F"}, "PYTORCH_DEBUG_MPS_ALLOCATOR", "0x1f", None),
    ({"PYTORCH_DEBUG_MPS_ALLOCATOR": "on"}, "PYTORCH_DEBUG_MPS_ALLOCATOR", "off", "not a number"),
    ({"PYTORCH_MPS_WATERMARK_RATIO": "0"}, "PYTORCH_MPS_WATERMARK_RATIO", "no effect", HIGH),
    ({"PYTORCH_ENABLE_MPS_FALBACK": "1"}, "PYTORCH_ENABLE_MPS_FALBACK", "no effect", FALLBACK),
    ({"PYTORCH_MPS_ENABLE_FALLBACK": "1"}, "PYTORCH_MPS_ENABLE_FALLBACK", "no effect", FALLBACK),
    ({"pytorch_enable_mps_fallback": "1"}, "pytorch_enable_mps_fallback", "no effect", FALLBACK),
    ({"MPS_HIGH_WATERMARK_RATIO": "1"}, "MPS_HIGH_WATERMARK_RATIO", "no effect", HIGH),
    ({"PYTORCH_MPS_ALLOC_CONF": "x"}, "PYTORCH_MPS_ALLOC_CONF", "no effect", "fork"),
    ({"PYTORCH_MPS_SOMETHING_ELSE_ENTIRELY": "1"}, "PYTORCH_MPS_SOMETHING_ELSE_ENTIRELY",
     "no effect", "no torch is known"),
    ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "PYTORCH_CUDA_ALLOC_CONF", "set to", None),
    ({"PYTORCH_VERSION": "2.13.0"}, "PYTORCH_VERSION", "not about MPS", None),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "name", "effect", "problem"), JUDGED)
def test_what_a_value_does_and_what_is_wrong_with_it(
    monkeypatch, environ, name, effect, problem
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")  # older ones do not read every variable
    (report,) = [one for one in current_environment(environ).variables if one.name == name]
    assert report.meaning.startswith(effect) or effect in report.meaning
    assert (report.problem is None) == (problem is None)
    if problem is not None:
        assert problem in report.problem
        assert report.fix.startswith(("export ", "unset "))
        assert report.problem in str(report)
        assert report.problem in current_environment(environ).problems


@pytest.mark.parametrize(
    ("name", "torch", "read"),
    [
        (METAL, "2.2.2", False),
        (METAL, "2.3.0", True),
        (FAST, "2.4.1", False),
        (FAST, "2.5.0", True),
        ("PYTORCH_MPS_METAL_VERSION", "2.14.1", False),
        ("PYTORCH_MPS_METAL_VERSION", "2.15.0", True),
        (HIGH, "2.2.2", True),
        (FAST, None, True),
    ],
)
def test_an_old_torch_does_not_read_a_new_variable(name, torch, read: bool) -> None:
    value = "3.1" if name.endswith("VERSION") else "1" if name != HIGH else "1.5"
    judgement = judge(name, {name: value}, torch)
    assert (judgement.problem is None) == read


def test_a_metal_version_must_be_one_that_torch_knows() -> None:
    name = "PYTORCH_MPS_METAL_VERSION"
    assert "3.1, 3.2, 4.0" in judge(name, {name: "5"}, "2.15.0").problem


def test_nothing_set_nothing_said() -> None:
    report = current_environment({"HOME": "x", "CUDA_MPS_PIPE_DIRECTORY": "y"})
    assert report.variables == ()
    assert str(report) == "no PYTORCH_* variable is set"


def test_the_process_s_own_variables_without_torch() -> None:
    code = (
        "import sys; from mpskit import current_environment\n"
        "assert current_environment().problems, 'nothing found'\n"
        "assert 'torch' not in sys.modules"
    )
    environ = os.environ | {HIGH: "0.7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ, timeout=280)


def test_every_variable_of_the_table_is_judged_and_sourced() -> None:
    for name, variable in variables().items():
        assert judge(name, {name: "1"}, "2.15.0").effect
        assert variable.source
        assert variable.meaning


@pytest.mark.parametrize(
    ("environ", "wrong"),
    [(3, 3), ([("a", "b")], [("a", "b")]), ({HIGH: 3}, 3), ({3: "x"}, 3)],
)
def test_what_is_no_environment_is_a_typed_error(environ: object, wrong: object) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        current_environment(environ)  # type: ignore[arg-type]
    assert caught.value.given == wrong


names = st.sampled_from([*variables(), "PYTORCH_MPS_WATERMARK_RATIO", "PYTORCH_", "MPS"])


@settings(deadline=None)
@given(st.dictionaries(names | st.text(max_size=40), st.text(max_size=30) | st.floats().map(str)))
def test_any_variables_are_explained(environ: dict[str, str]) -> None:
    report = current_environment(environ)
    assert str(report)
    assert {one.name for one in report.variables} <= set(environ)
    assert all(one.fix for one in report.variables if one.problem)


# --- setting ----------------------------------------------------------------------------------


def high_and_low() -> tuple[float, float]:
    return float(os.environ[HIGH]), float(os.environ.get(LOW, "1.4"))


# A 16 GiB Mac with macOS 15.6: the working set is two thirds of it (working-set rule).
@pytest.mark.parametrize(
    ("limit", "share"),
    [("80%", 0.8), (0.8, 0.8), ("12.8GiB", 0.8), (8 * GIB, 0.5), ("100%", 1.0), ("12%", 0.12)],
)
def test_a_share_of_the_ram_becomes_a_ratio_of_the_working_set(mac, limit, share: float) -> None:
    change = configure_environment(memory_limit=limit)
    high, low = high_and_low()
    assert high == pytest.approx(share * 1.5, abs=1e-4)
    assert high * 11453251584 <= share * 16 * GIB + 1
    assert low <= high
    assert (LOW in change.set) == (high < 1.4)
    assert current_environment().problems == ()


@pytest.mark.parametrize(
    "mac", ["m1-8gb", "m3-max-64gb", "m4-24gb", "m2-ultra-192gb"], indirect=True
)
def test_every_mac_gets_a_pair_that_torch_takes(mac) -> None:
    from mpskit.allocator import allocator_for
    from mpskit.memory.working_set import recommended_bytes

    recommended = recommended_bytes(mac.ram_bytes, mac.macos).recommended_bytes
    for share in (0.05, 0.5, 0.8, 1.0):
        configure_environment(memory_limit=share, on_conflict="override")
        high, low = high_and_low()
        model = allocator_for(
            "mps", torch_version="2.13.0", recommended_bytes=recommended, high=high, low=low
        )
        assert share * mac.ram_bytes * 0.999 < model.limit_bytes <= share * mac.ram_bytes


def test_the_wired_limit_counts(early) -> None:
    readings = find_machine("m1-16gb").readings()
    sysctl = dict(readings.sysctl or {}) | {"iogpu.wired_limit_mb": "14336"}
    previous = replace_readings(readings.model_copy(update={"sysctl": sysctl}))
    try:
        configure_environment(memory_limit="14GiB")
    finally:
        replace_readings(previous)
    assert high_and_low()[0] == pytest.approx(1.0)


def test_low_by_itself_and_with_the_limit(mac) -> None:
    configure_environment(low="50%")
    assert float(os.environ[LOW]) == pytest.approx(0.75, abs=1e-5)
    assert HIGH not in os.environ
    configure_environment(memory_limit="80%", low="70%", on_conflict="override")
    assert high_and_low() == (pytest.approx(1.2, abs=1e-4), pytest.approx(1.05, abs=1e-4))


@pytest.mark.parametrize("early_machine", [None, "intel-mac-32gb"])
def test_without_mps_no_limit_is_set_and_that_is_told(early, early_machine) -> None:
    previous = replace_readings(find_machine(early_machine).readings() if early_machine else None)
    try:
        change = configure_environment(memory_limit="80%", fallback=True)
    finally:
        replace_readings(previous)
    assert change.set == {FALLBACK: "1"}
    assert "not an Apple-silicon Mac" in str(change)


class TestConflicts:
    @pytest.fixture(autouse=True)
    def _mac(self, mac) -> None:
        os.environ[HIGH] = "0.9"
        os.environ[LOW] = "0.8"

    def test_a_user_s_value_is_kept_and_told(self) -> None:
        change = configure_environment(memory_limit="80%")
        assert (os.environ[HIGH], os.environ[LOW]) == ("0.9", "0.8")
        assert change.kept == {HIGH: "0.9"}
        assert change.set == {}
        assert "yours" in str(change)

    def test_a_user_s_value_is_overridden_and_told(self) -> None:
        change = configure_environment(memory_limit="40%", on_conflict="override")
        assert change.replaced == {HIGH: "0.9", LOW: "0.8"}
        assert high_and_low()[0] == pytest.approx(0.6, abs=1e-4)
        assert high_and_low()[1] <= 0.6
        assert "was 0.9" in str(change)

    def test_a_low_ratio_that_still_fits_stays(self) -> None:
        configure_environment(memory_limit="60%", on_conflict="override")
        assert os.environ[LOW] == "0.8"

    def test_or_it_is_an_error_and_nothing_changes(self) -> None:
        before = dict(os.environ)
        with pytest.raises(SettingsError) as caught:
            configure_environment(memory_limit="80%", fast_math=True, on_conflict="error")
        assert caught.value.given == "0.9"
        assert dict(os.environ) == before

    def test_the_same_value_is_no_conflict(self) -> None:
        os.environ[FALLBACK], os.environ[FAST], os.environ[METAL] = "2", "yes", "1"
        change = configure_environment(
            fallback=True, fast_math=True, prefer_metal=True, on_conflict="error"
        )
        assert change.set == {}
        assert change.kept == {FALLBACK: "2", FAST: "yes", METAL: "1"}

    def test_a_kept_low_that_would_break_the_pair_keeps_high_away(self) -> None:
        del os.environ[HIGH]
        os.environ[LOW] = "1.3"
        change = configure_environment(memory_limit="50%")
        assert HIGH not in os.environ
        assert change.set == {}
        assert "refuses" in str(change)

    def test_a_kept_high_without_a_low_one_gets_its_low(self) -> None:
        del os.environ[LOW]
        change = configure_environment(memory_limit="50%")
        assert os.environ[HIGH] == "0.9"
        assert float(os.environ[LOW]) <= 0.9
        assert change.set == {LOW: os.environ[LOW]}
        assert current_environment().problems == ()

    def test_prefer_metal_false_means_not_set(self) -> None:
        assert configure_environment(prefer_metal=False).set == {}
        os.environ[METAL] = "0"
        kept = configure_environment(prefer_metal=False)
        assert kept.kept == {METAL: "0"}
        assert "although its removal was asked for" in str(kept)
        change = configure_environment(prefer_metal=False, on_conflict="override")
        assert change.removed == {METAL: "0"}
        assert METAL not in os.environ


def test_a_report_is_read_back_from_its_json() -> None:
    report = current_environment({HIGH: "0.7"})
    assert report.problems
    assert type(report).model_validate_json(report.model_dump_json()) == report


def test_switches_and_nothing_at_all(early) -> None:
    assert str(configure_environment()) == "nothing to change"
    change = configure_environment(fallback=False, fast_math=True, prefer_metal=True)
    assert change.set == {FALLBACK: "0", FAST: "1", METAL: "1"}
    assert os.environ[FALLBACK] == "0"


class TestTooLate:
    def test_the_fallback_after_torch(self) -> None:
        import torch  # noqa: F401 - this is what makes it too late

        with pytest.raises(TooLateError, match="import torch") as caught:
            configure_environment(fallback=True)
        assert caught.value.given == "1"
        assert FALLBACK not in os.environ

    def test_the_same_fallback_after_torch_is_fine(self) -> None:
        os.environ[FALLBACK] = "1"
        assert configure_environment(fallback=True).kept == {FALLBACK: "1"}

    @pytest.mark.parametrize(("in_use", "late"), [(True, True), (False, False), (None, False)])
    def test_the_ratios_after_the_first_use(self, monkeypatch, in_use, late: bool) -> None:
        monkeypatch.setattr(backends.Backend, "is_initialized", lambda self: in_use)
        monkeypatch.setitem(backends.APIS, Api.MPS, backends.Backend)
        previous = replace_readings(find_machine("m1-16gb").readings())
        try:
            if late:
                with pytest.raises(TooLateError, match="first use"):
                    configure_environment(memory_limit="80%")
                assert HIGH not in os.environ
            else:
                change = configure_environment(memory_limit="80%")
                assert HIGH in change.set
                assert ("cannot say" in str(change)) == (in_use is None)
        finally:
            replace_readings(previous)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"memory_limit": "120%"}, ArgumentError),
        ({"memory_limit": 1.5}, ArgumentError),
        ({"memory_limit": "17GiB"}, ArgumentError),
        ({"memory_limit": 0}, ArgumentError),
        ({"memory_limit": "0%"}, ArgumentError),
        ({"memory_limit": 1}, ArgumentError),
        ({"memory_limit": -5}, ArgumentError),
        ({"memory_limit": "lots"}, ArgumentError),
        ({"memory_limit": [1]}, ArgumentTypeError),
        ({"memory_limit": True}, ArgumentTypeError),
        ({"memory_limit": float("nan")}, ArgumentError),
        ({"memory_limit": "50%", "low": "60%"}, ArgumentError),
        ({"fallback": 1}, ArgumentTypeError),
        ({"fast_math": "yes"}, ArgumentTypeError),
        ({"prefer_metal": 0}, ArgumentTypeError),
        ({"on_conflict": "maybe"}, ArgumentError),
        ({"on_conflict": None}, ArgumentError),
    ],
)
def test_wrong_arguments_change_nothing(mac, arguments: dict, error: type) -> None:
    before = dict(os.environ)
    with pytest.raises(error):
        configure_environment(**arguments)
    assert dict(os.environ) == before


amounts = st.none() | st.text(max_size=12) | st.floats() | st.integers(-(10**20), 10**20)


@settings(deadline=None)
@given(
    limit=amounts | st.integers(0, 100).map(lambda n: f"{n}%"),
    low=amounts,
    user_high=st.none() | st.floats(0, 3).map(str),
    user_low=st.none() | st.floats(0, 3).map(str),
    on_conflict=st.sampled_from(["keep", "override", "error"]),
)
def test_any_amount_is_a_change_that_torch_takes_or_a_typed_error(
    limit, low, user_high, user_low, on_conflict
) -> None:
    users = {HIGH: user_high, LOW: user_low}
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch", raising=False)
        for name, text in users.items():
            os.environ.pop(name, None)
            if text is not None:
                os.environ[name] = text
        sound = not current_environment().problems
        previous = replace_readings(find_machine("m1-16gb").readings())
        try:
            change = configure_environment(memory_limit=limit, low=low, on_conflict=on_conflict)
        except MpskitError:
            assert {name: os.environ.get(name) for name in users} == users
        else:
            assert not (sound and current_environment().problems)
            if on_conflict == "keep":
                assert not change.replaced
        finally:
            replace_readings(previous)


def test_the_page_names_every_variable() -> None:
    page = (Path(__file__).parents[2] / "docs" / "environment.md").read_text()
    named = [one.name for one in variables().values() if "MPS" in one.name and one.parse != "none"]
    assert [name for name in named if f"`{name}`" not in page] == []


def test_the_doctor_shows_what_is_wrong_and_the_command_that_mends_it() -> None:
    environ = os.environ | {HIGH: "0.7", "PYTORCH_MPS_WATERMARK_RATIO": "0"}
    command = [sys.executable, "-m", "mpskit", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, env=environ, timeout=280, check=False)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    wrong = {check["name"]: check["fix"] for check in report["checks"] if check["mark"] == "fail"}
    assert f"export {LOW}=" in wrong[HIGH]
    assert wrong["PYTORCH_MPS_WATERMARK_RATIO"] == "unset PYTORCH_MPS_WATERMARK_RATIO"
