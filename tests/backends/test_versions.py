import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.backends import versions


@pytest.mark.parametrize(
    ("feature", "torch", "there"),
    [
        ("mps.recommended_max_memory", "2.4.1", False),
        ("mps.recommended_max_memory", "2.5.0", True),
        ("accelerator.memory.mps", "2.12.1", False),
        ("accelerator.memory.mps", "2.13.0+cpu", True),
        ("mps.grad_scaler", "2.7.1", False),
        ("mps.grad_scaler", "2.8.0a0+git1eba9b3", True),
        ("mps.discrete_gpu", "2.2.2", True),
        ("mps.discrete_gpu", "2.13.0", False),
        ("mps.stream", "2.16.0", True),
        ("mps.stream", "a build of my own", True),
    ],
)
def test_has(feature, torch, there):
    assert versions.has(feature, torch) is there


@pytest.mark.parametrize(
    ("torch", "macos"),
    [("2.2.2", "12.3"), ("2.5.1", "13.0"), ("2.8.0", "13.0"), ("2.9.0", "14.0"), ("2.14.1", "14.0"),
     ("2.15.0", "15.0"), ("3.0", "15.0"), ("1.13", "12.3")],
)  # fmt: skip
def test_minimum_macos(torch, macos):
    assert versions.minimum_macos(torch) == macos


@given(st.text(max_size=20))
def test_any_text_is_a_version(text):
    assert versions.has("mps.stream", text) in (True, False)


def test_the_version_needs_no_torch(monkeypatch):
    loaded = versions.torch_version()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert versions.torch_version() == loaded
    assert loaded is not None
