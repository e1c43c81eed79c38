import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.backends import versions
from mpskit.errors import UnsupportedTorchError


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
    ("feature", "torch", "needed"),
    [
        ("simulation", "2.5.1", "a simulated machine needs torch 2.6 or newer; 2.5.1 is installed"),
        ("simulation", "2.6.0", None),
        ("simulation", "2.15.0+cu132", None),
        (
            "estimate",
            "2.2.2",
            "a traced memory estimate needs torch 2.6 or newer; 2.2.2 is installed",
        ),
        ("estimate", "2.6.0", None),
        ("estimate", None, "a traced memory estimate needs torch 2.6 or newer; none is installed"),
    ],
)
def test_require(feature, torch, needed, monkeypatch):
    monkeypatch.setattr(versions, "torch_version", lambda: torch)
    if needed is None:
        versions.require(feature)
        return
    with pytest.raises(UnsupportedTorchError) as error:
        versions.require(feature)
    assert (str(error.value), error.value.given) == (needed, torch)


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


def test_a_number_that_python_does_not_read_is_no_version():
    assert versions.older("9" * 5000, than="15") is False
    assert versions.within("2.13.0", since="9" * 5000)


def test_the_version_needs_no_torch(monkeypatch):
    loaded = versions.torch_version()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    installed = versions.torch_version()
    assert loaded is not None
    assert installed is not None
    # A CUDA build's metadata leave out the build: 2.2.2 of 2.2.2+cu121.
    assert loaded.partition("+")[0] == installed.partition("+")[0]


@pytest.mark.parametrize(
    ("version", "since", "until", "inside"),
    [
        ("2.13.0", None, None, True),
        ("2.13.0", "2.13", None, True),
        ("2.12.1", "2.13", None, False),
        ("2.13.0", None, "2.13", False),
        ("2.12.1+cpu", None, "2.13", True),
        ("2.14.0.dev20260901", "2.14", None, True),
        ("2.14.0.dev20260901", None, "2.14", False),
        ("2.14.0.dev20260901", "2.14.dev0", "2.14", True),
        ("2.14.0a0+git1eba9b3", "2.14.dev0", "2.14", True),
        ("2.14.0", "2.14.dev0", "2.14", False),
        ("2.13.1", "2.14.dev0", "2.14", False),
        (None, "2.13", "2.14", True),
        ("a build of my own", "2.13", None, True),
        ("a build of my own", None, "2.13", False),
        ("15.6", "15", "26", True),
        ("26.0.1", "15", "26", False),
    ],
)
def test_within(version, since, until, inside):
    assert versions.within(version, since, until) is inside


@pytest.mark.parametrize(
    ("version", "than", "is_older"),
    [("14.7", "15", True), ("15.0", "15", False), (None, "15", False), ("?", "15", False)],
)
def test_older(version, than, is_older):
    assert versions.older(version, than) is is_older


def test_the_newest_known_torch_has_everything_that_is_not_gone():
    rows = versions.FEATURES.items()
    assert all(versions.has(name, versions.NEWEST) is (until is None) for name, (_, until) in rows)


def test_what_is_refused_stands_in_the_documents():
    page = (Path(__file__).parents[2] / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("|") and "UnsupportedT" in row]
    told = {name: row.split("|")[2].strip() for row in rows for name in re.findall("`(.*?)`", row)}
    assert told["estimate_training_memory"] == versions.FEATURES["estimate"][0]
    assert told["simulate"] == versions.FEATURES["simulation"][0]
    assert len(rows) == len(versions._REFUSED)
