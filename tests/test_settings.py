import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import SettingsError
from mpskit.settings import Settings, fingerprint, parse_policy, read_settings


@pytest.mark.parametrize(
    ("name", "right"),
    [("MPSKIT_DEVCIE", "MPSKIT_DEVICE"), ("MPSKIT_DISABLE_MSP", "MPSKIT_DISABLE_MPS")],
)
def test_a_name_that_is_nearly_right_is_refused_and_a_strange_one_is_not(name, right):
    with pytest.raises(SettingsError, match=f"{name}='cpu' is not understood: use {right}"):
        read_settings({name: "cpu"})
    assert read_settings({"MPSKIT_OF_NEXT_YEAR": "cpu"}) == Settings()


def test_a_machine_to_simulate_is_left_by_a_parent():
    assert read_settings({"MPSKIT_SIMULATE": '{"machine": {}}'}) == Settings()
    with pytest.raises(SettingsError, match="mpskit simulate MACHINE"):
        read_settings({"MPSKIT_SIMULATE": "m1-8gb"})


def test_nothing_set_is_all_defaults():
    assert read_settings({}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MPSKIT_DEVICE", "mps", "device", "mps"),
        ("MPSKIT_DEVICE", " CUDA:1 ", "device", "cuda:1"),
        ("MPSKIT_DEVICE", "", "device", None),
        ("MPSKIT_POLICY", "conservative", "policy", "conservative"),
        ("MPSKIT_POLICY", "mps, cuda,cpu", "policy", ("mps", "cuda", "cpu")),
        ("MPSKIT_DISABLE_MPS", "1", "disable_mps", True),
        ("MPSKIT_DISABLE_MPS", "No", "disable_mps", False),
        ("MPSKIT_NO_CACHE", "true", "no_cache", True),
        ("MPSKIT_DISABLE_MPS", "off", "disable_mps", False),
        ("MPSKIT_DISABLE_MPS", "on", "disable_mps", True),
        ("MPSKIT_DISABLE_MPS", "0", "disable_mps", False),
        ("MPSKIT_DEVICE", "mps:0", "device", "mps:0"),
        ("MPSKIT_DEVICE", "cpu:0", "device", "cpu:0"),
        ("MPSKIT_DEVICE", "xpu:10", "device", "xpu:10"),
        ("MPSKIT_DEVICE", "npu:1", "device", "npu:1"),
        ("LOCAL_RANK", "3", "local_rank", 3),
        ("WORLD_SIZE", "4", "world_size", 4),
        ("WORLD_SIZE", "-1", "world_size", None),
        ("WORLD_SIZE", "many", "world_size", None),
    ],
)
def test_right_values(variable, text, field, value):
    assert getattr(read_settings({variable: text}), field) == value


@pytest.mark.parametrize(
    ("variable", "text", "right"),
    [
        ("MPSKIT_DEVICE", "gpu", "cpu, cuda, mps"),
        ("MPSKIT_DEVICE", "cuda:x", "cuda:N"),
        ("MPSKIT_DEVICE", "cuda:01", "cuda:N"),
        ("MPSKIT_DEVICE", "cuda:\uff11", "cuda:N"),
        ("MPSKIT_DEVICE", "cuda:\u0661", "cuda:N"),
        ("MPSKIT_DEVICE", "cuda:12345", "cuda:N"),
        ("MPSKIT_DEVICE", "cpu:3", "cuda:N"),
        ("MPSKIT_DEVICE", "mps:5", "cuda:N"),
        ("MPSKIT_POLICY", "fast", "auto, conservative"),
        ("MPSKIT_POLICY", "mps,mps", "mps,cuda,cpu"),
        ("MPSKIT_DISABLE_MPS", "maybe", "true"),
        ("MPSKIT_CACHE_DIR", "~nobody-of-this-name/cache", "a folder that can be found"),
        ("LOCAL_RANK", "-1", "whole number"),
        ("LOCAL_RANK", "٣", "whole number"),
    ],
)
def test_wrong_values_list_the_right_ones_and_carry_the_input(variable, text, right):
    with pytest.raises(SettingsError, match=right) as caught:
        read_settings({variable: text})
    assert caught.value.given == text
    assert isinstance(caught.value, ValueError)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "MPSKIT_DEVICE",
                "MPSKIT_POLICY",
                "MPSKIT_DISABLE_MPS",
                "MPSKIT_NO_CACHE",
                "MPSKIT_CACHE_DIR",
                "LOCAL_RANK",
                "WORLD_SIZE",
            ]
        ),
        st.text(max_size=20),
    )
)
def test_any_text_is_a_setting_or_a_settings_error(environ):
    try:
        assert isinstance(read_settings(environ), Settings)
    except SettingsError as error:
        assert error.given is not None


@given(st.text(max_size=30))
def test_a_policy_is_parsed_or_none(text):
    assert parse_policy(text) is None or parse_policy(text)


@pytest.mark.parametrize(
    "name", ["MPSKIT_DEVICE", "MPSKIT_POLICY", "MPSKIT_DISABLE_MPS", "LOCAL_RANK", "WORLD_SIZE"]
)
def test_the_fingerprint_tells_every_decisive_change(monkeypatch, name):
    before = fingerprint()
    for change in (
        lambda: monkeypatch.setenv(name, "1"),
        lambda: os.environ.update({name: "2"}),
        lambda: os.environ.pop(name),
    ):
        last = fingerprint()
        change()
        assert fingerprint() != last
    assert fingerprint() == before
