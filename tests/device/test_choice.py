import logging
import threading
import warnings

import pytest
import torch

from mpskit import DeviceUnavailableError, SettingsError, get_optimal_device
from mpskit.backends import facts
from mpskit.device import ReasonCode, Rejected, choice, probe
from mpskit.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceFallbackWarning,
    EnvironmentWarning,
)
from mpskit.host import Readings


def test_on_a_mac_it_is_mps_and_info_says_how_to_find_out(on_machine):
    on_machine("m1-16gb")
    device, info = get_optimal_device()
    assert device == torch.device("mps")
    assert (info.device, str(info.basis)) == ("mps", "default")
    assert any("Small models are often faster on the CPU" in line for line in info.advice)
    assert "\n" not in str(info)
    assert "M1" in str(info)


def test_the_json_is_complete(on_machine):
    on_machine("m1-16gb")
    info = get_optimal_device().info
    assert type(info).model_validate_json(info.model_dump_json()) == info
    assert {r.device for r in info.rejected} == {"cuda", "xpu", "cpu"}


def test_here_without_any_pretence():
    device, info = get_optimal_device()
    assert torch.ones(2, device=device).sum().item() == 2
    assert info.torch_version == str(torch.__version__)


def test_an_impossible_force_warns_where_it_was_asked(on_machine):
    on_machine("intel-mac-32gb", torch="2.2.2", mps=False)
    with pytest.warns(DeviceFallbackWarning, match="Intel Mac") as caught:
        device, info = get_optimal_device(force_mps=True)
    assert device == torch.device("cpu")
    assert caught[0].filename == __file__
    assert next(r for r in info.rejected if r.device == "mps").code is ReasonCode.INTEL_MAC
    with pytest.warns(DeviceFallbackWarning):
        get_optimal_device(force_mps=True)


def test_strict_raises_instead(on_machine):
    on_machine("rosetta-m2-16gb", mps=False)
    with pytest.raises(DeviceUnavailableError, match="Rosetta") as caught:
        get_optimal_device(force_mps=True, strict=True)
    assert caught.value.given == "mps"


@pytest.mark.parametrize(
    ("fix", "text"),
    [("do this", "mps: it is off (to change this: do this)"), (None, "mps: it is off")],
)
def test_what_was_rejected_is_told_with_its_mend(fix, text):
    rejected = Rejected(device="mps", code=ReasonCode.DISABLED_BY_USER, reason="it is off", fix=fix)
    assert str(rejected) == text


def test_strict_is_not_remembered_as_a_success(on_machine, monkeypatch):
    on_machine("m1-8gb")
    monkeypatch.setenv("MPSKIT_DEVICE", "cuda:1")
    for _ in range(2):
        with pytest.raises(DeviceUnavailableError):
            get_optimal_device(strict=True)


@pytest.mark.parametrize(
    ("variables", "device"),
    [
        ({"MPSKIT_DEVICE": "cpu"}, "cpu"),
        ({"MPSKIT_POLICY": "conservative"}, "cpu"),
        ({"MPSKIT_DISABLE_MPS": "1"}, "cpu"),
        ({"MPSKIT_DISABLE_MPS": "0"}, "mps"),
        ({"MPSKIT_POLICY": "conservative", "MPSKIT_DEVICE": "mps"}, "mps"),
    ],
)
def test_the_variables_and_a_changed_one_are_honoured(on_machine, monkeypatch, variables, device):
    on_machine("m1-8gb")
    assert str(get_optimal_device().device) == "mps"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(get_optimal_device().device) == device


def test_disabled_wins_over_force(on_machine, monkeypatch):
    on_machine("m1-8gb")
    monkeypatch.setenv("MPSKIT_DISABLE_MPS", "1")
    with pytest.warns(DeviceFallbackWarning, match="unset MPSKIT_DISABLE_MPS"):
        assert str(get_optimal_device(force_mps=True).device) == "cpu"


def test_a_wrong_variable_is_an_error_each_time(on_machine, monkeypatch):
    on_machine("m1-8gb")
    monkeypatch.setenv("MPSKIT_DEVICE", "gpu")
    for _ in range(2):
        with pytest.raises(SettingsError, match="cpu, cuda, mps"):
            get_optimal_device()


def test_local_rank_picks_the_card(on_machine, monkeypatch):
    on_machine(Readings(system="Linux"), mps=False, built=False, cuda=4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert str(get_optimal_device().device) == "cuda:3"
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(DeviceUnavailableError, match="LOCAL_RANK=4"):
        get_optimal_device()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"use_gpu": "yes"}, ArgumentTypeError),
        ({"force_mps": 1}, ArgumentTypeError),
        ({"strict": None}, ArgumentTypeError),
        ({"policy": 3}, ArgumentTypeError),
        ({"policy": ("mps", 3)}, ArgumentTypeError),
        ({"policy": "fastest"}, ArgumentError),
        ({"policy": ()}, ArgumentError),
        ({"policy": ("mps", "mps")}, ArgumentError),
        ({"workload": object()}, ArgumentTypeError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error) as caught:
        get_optimal_device(**arguments)
    assert caught.value.given == next(iter(arguments.values()))


def test_a_policy_that_cannot_be_compared_is_a_wrong_type():
    class Array:
        def __eq__(self, other):
            raise ValueError("the truth value of an array is ambiguous")

        __hash__ = None

    with pytest.raises(ArgumentTypeError):
        get_optimal_device(policy=Array())


def test_a_decision_is_remembered_and_refresh_asks_again(on_machine, monkeypatch):
    on_machine("m1-8gb")
    first = get_optimal_device()
    monkeypatch.setattr(facts, "read_torch", lambda: facts.TorchFacts("2.13.0"))
    assert get_optimal_device() is first
    assert str(get_optimal_device(refresh=True).device) == "cpu"
    assert str(get_optimal_device().device) == "cpu"


def test_a_virtual_machine_is_tried_once_even_without_a_cache(on_machine, monkeypatch):
    tried = []
    monkeypatch.setattr(probe, "probe_mps", lambda _: tried.append(1))
    monkeypatch.setenv("MPSKIT_NO_CACHE", "1")
    on_machine("github-macos-15-vm")
    assert get_optimal_device().device.type == "mps"
    assert get_optimal_device(policy="auto").device.type == "mps"
    assert len(tried) == 1
    get_optimal_device(refresh=True)
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ({"use_gpu": False}, {}),
        ({}, {"MPSKIT_DEVICE": "cpu"}),
        ({"policy": "conservative"}, {}),
        ({"policy": ("cpu", "mps")}, {}),
        ({}, {"MPSKIT_POLICY": "cpu"}),
        ({"force_mps": True}, {"MPSKIT_DISABLE_MPS": "1"}),
    ],
)
@pytest.mark.filterwarnings("ignore::mpskit.errors.DeviceFallbackWarning")
def test_a_virtual_machine_is_not_tried_where_mps_is_not_chosen(
    on_machine, monkeypatch, arguments, variables
):
    def tried(_):
        raise AssertionError("a try costs seconds")

    monkeypatch.setattr(probe, "probe_mps", tried)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    on_machine("github-macos-15-vm")
    assert get_optimal_device(**arguments).device.type == "cpu"


def test_forgetting_decisions_forgets_the_try_too(on_machine, monkeypatch):
    answers = ["broken", None]
    monkeypatch.setattr(probe, "probe_mps", lambda _: answers.pop(0))
    monkeypatch.setenv("MPSKIT_NO_CACHE", "1")
    on_machine("github-macos-15-vm")
    assert get_optimal_device().device.type == "cpu"
    choice.forget_decisions()
    assert get_optimal_device().device.type == "mps"


@pytest.mark.parametrize("policy", ["conservative", "CONSERVATIVE", ("cpu", "mps"), "cpu,mps"])
def test_a_policy_that_is_given_is_followed(on_machine, policy):
    on_machine("m1-8gb")
    assert get_optimal_device(policy=policy).device.type == "cpu"
    assert get_optimal_device(policy="auto").device.type == "mps"


def test_an_unusable_device_keeps_the_policy_and_strict_promises_no_other(on_machine, monkeypatch):
    on_machine("m1-8gb")
    monkeypatch.setenv("MPSKIT_DEVICE", "cuda")
    with pytest.warns(DeviceFallbackWarning, match="using cpu"):
        assert get_optimal_device(policy="conservative").device.type == "cpu"
    with pytest.raises(DeviceUnavailableError, match="asked for cuda") as caught:
        get_optimal_device(strict=True)
    assert "using" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "arguments", "warned"),
    [
        ("2", {}, True), ("8", {"force_mps": True}, True), ("1", {}, False), ("", {}, False),
        ("-1", {}, False), ("2", {"use_gpu": False}, False),
    ],
)  # fmt: skip
def test_several_processes_on_one_mac_are_warned(on_machine, monkeypatch, size, arguments, warned):
    on_machine("m1-8gb")
    monkeypatch.setenv("WORLD_SIZE", size)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            info = get_optimal_device(**arguments).info
        assert [one.category for one in caught] == [EnvironmentWarning] * warned
        assert [one.filename for one in caught] == [__file__] * warned
        assert any(f"WORLD_SIZE={size}:" in line for line in info.advice) is warned


def test_one_line_in_the_log_per_process(on_machine, caplog):
    on_machine("m1-8gb")
    with caplog.at_level(logging.DEBUG, logger="mpskit"):
        get_optimal_device()
        get_optimal_device(refresh=True)
        get_optimal_device(use_gpu=False)
    lines = [record for record in caplog.records if record.levelno == logging.INFO]
    assert [line.getMessage().split(":")[0] for line in lines] == ["device mps"]
    assert any("cuda" in r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG)


def test_threads_agree(on_machine):
    on_machine("m1-8gb")
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(get_optimal_device().info)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_statuses_are_what_the_decision_saw(on_machine):
    host = on_machine("m1-8gb")
    settings = choice.read_settings({"MPSKIT_DISABLE_MPS": "1"})
    statuses = choice.backend_statuses(host, facts.read_torch(), settings)
    assert [(s.device, s.usable) for s in statuses] == [
        ("cuda", False), ("mps", False), ("xpu", False), ("cpu", True)
    ]  # fmt: skip
