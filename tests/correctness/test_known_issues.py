"""The table of known bugs, filtered by torch, macOS and chip."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit import known_issues
from mpskit.correctness.issue_table import Range, issue_table
from mpskit.correctness.operators import CONDITIONS
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host import Host, HostKind
from mpskit.host.machines import Machine, find_machine


def host(chip: str = "M1", macos: str = "14.5", ram: int = 16) -> Host:
    return Host.from_readings(Machine(chip=chip, ram_gib=ram, macos=macos).readings())


def keys(machine: Host, torch: str) -> set[str]:
    return {issue.key for issue in known_issues(machine, torch)}


# key, a machine and torch that have it, and one that has not: the bounds of the table's rows
BOUNDS = [
    ("addcmul-non-contiguous", ("M1", "14.5", "2.3.1"), ("M1", "14.5", "2.4.0")),
    ("addcmul-non-contiguous", ("M1", "14.7", "2.2.2"), ("M1", "15.0", "2.2.2")),
    ("random-non-contiguous", ("M3", "14.5", "2.9.1"), ("M3", "14.5", "2.10.0")),
    ("silu-multinomial-non-contiguous", ("M1", "14.0", "2.5.1"), ("M1", "13.6", "2.5.1")),
    ("item-assignment", ("M1", "14.4", "2.2.2"), ("M1", "14.3", "2.2.2")),
    ("linear-non-contiguous-weight", ("M4", "15.6", "2.8.0"), ("M4", "15.6", "2.7.1")),
    ("sdpa-vector-kernel", ("M2", "15.6", "2.9.1"), ("M2", "15.6", "2.7.1")),
    ("matmul-long-inner-2d", ("M2 Max", "15.6", "2.13.0"), ("M3", "15.6", "2.13.0")),
    ("matmul-long-inner-batched", ("M1", "26.4", "2.15.0"), ("M5", "26.4", "2.15.0")),
    ("ndarray-4-gib", ("M1", "14.7", "2.15.0"), ("M1", "15.1", "2.15.0")),
    ("expanded-operand", ("M4", "26.2", "2.15.0"), ("M4", "26.4", "2.15.0")),
    ("distributed-fallback", ("M1", "15.6", "2.10.0"), ("M1", "15.6", "2.11.0")),
    ("graph-cache", ("M1", "15.6", "2.13.0"), ("M1", "15.6", "2.14.0")),
    ("sdpa-grouped-query", ("M1", "15.6", "2.10.0"), ("M1", "15.6", "2.11.0")),
    ("conv2d-non-contiguous-weight", ("M1", "15.6", "2.6.0"), ("M1", "14.7", "2.6.0")),
    ("conv2d-non-contiguous-weight", ("M4", "26.2", "2.13.0"), ("M4", "26.2", "2.14.0")),
    ("linear-bias-macos-26", ("M1", "26.5.2", "2.13.0"), ("M4", "26.5.2", "2.13.0")),
    ("linear-bias-macos-26", ("M1", "26.5.2", "2.15.0"), ("M1", "27.0", "2.15.0")),
    ("sdpa-causal-half", ("M5", "27.0", "2.12.1"), ("M5", "27.0", "2.13.0")),
    ("linear-half-m5", ("M5 Max", "26.4", "2.12.1"), ("M4", "26.4", "2.12.1")),
    ("linear-half-backward-m5", ("M5", "26.4", "2.12.1"), ("M5", "26.4", "2.13.0")),
    ("lstm-dropout-backward", ("M4", "15.6", "2.13.0"), ("M4", "15.6", "2.14.0")),
    ("lstm-dropout-eval", ("M4", "15.6", "2.12.1"), ("M4", "15.6", "2.13.0")),
    ("layer-norm-frozen-input", ("M4", "15.6", "2.12.1"), ("M4", "15.6", "2.13.0")),
    ("linear-bias-large-batch", ("M5", "26.5.2", "2.13.0"), ("M5", "26.5.2", "2.14.0")),
    ("linear-transposed-bf16-macos-27", ("M5", "27.0", "2.13.0"), ("M5", "26.5", "2.13.0")),
    ("conv3d-macos-26-2", ("M2 Max", "26.2", "2.14.0"), ("M2 Max", "26.3", "2.14.0")),
    ("channels-last-slice", ("M4", "26.3", "2.11.0"), ("M4", "26.3", "2.13.0")),
    ("reductions-in-succession", ("M4", "26.3", "2.11.0"), ("M4", "26.3", "2.13.0")),
    ("multinomial-zero-probability", ("M1", "15.7.7", "2.13.0"), ("M1", "15.7.7", "2.12.1")),
]


@pytest.mark.parametrize(("key", "has", "has_not"), BOUNDS)
def test_a_bug_applies_within_its_bounds_only(key: str, has: tuple, has_not: tuple) -> None:
    assert key in keys(host(*has[:2]), has[2])
    assert key not in keys(host(*has_not[:2]), has_not[2])


def test_the_worst_come_first() -> None:
    order = [issue.severity for issue in known_issues(host(), "2.2.2")]
    assert order == sorted(order, key=["serious", "moderate", "minor"].index)
    assert order[0] == "serious"


def test_builds_with_a_suffix_count_as_their_release() -> None:
    for torch in ("2.13.0+cpu", "2.13.0"):
        assert "matmul-long-inner-2d" in keys(host(macos="15.6"), torch)
    assert known_issues(host(), "my own build") is not None


@pytest.mark.parametrize("kind", ["intel-mac-amd-32gb", "rosetta-m2-16gb", "github-macos-15-vm"])
def test_other_macs_are_answered_too(kind: str) -> None:
    found = known_issues(Host.from_readings(find_machine(kind).readings()), "2.2.2")
    assert "non-blocking-copy" in {issue.key for issue in found}
    if kind.startswith("intel"):
        assert not [issue for issue in found if issue.chips]


def test_a_machine_that_is_no_mac_has_none() -> None:
    assert known_issues(Host(kind=HostKind.LINUX, os_name="Linux"), "2.13.0") == ()


def test_what_cannot_be_ruled_out_is_told() -> None:
    unknown = Host(kind=HostKind.APPLE_SILICON, os_name="macOS")
    assert "addcmul-non-contiguous" in keys(unknown, "2.3.1")


def test_every_row_is_complete() -> None:
    table = issue_table()
    assert len({issue.key for issue in table}) == len(table) >= 20
    for issue in table:
        assert issue.workaround
        assert not issue.summary.endswith(".")
        assert all(link.startswith("https://github.com/") for link in issue.links)
        assert issue.source in str(issue)
        assert issue.model_dump_json()
        assert set(issue.when) <= set(CONDITIONS)
        assert issue.ops or not issue.dtypes


@pytest.mark.parametrize(
    ("since", "until", "version", "holds"),
    [
        ("2.7", "2.14", "2.13.1", True),
        ("2.7", "2.14", "2.14.0", False),
        ("2.7", "2.14", "2.6.9", False),
        (None, "15", "14.7.1", True),
        ("26", None, "26.1", True),
        ("26", None, None, True),
        (None, None, "1", True),
    ],
)
def test_ranges(since, until, version, holds: bool) -> None:
    assert Range(since=since, until=until).holds(version) is holds
    assert str(Range(since=since, until=until))


@pytest.mark.parametrize("arguments", [(8,), (None, 2.13), (["m1-8gb"],)])
def test_wrong_types(arguments: tuple) -> None:
    with pytest.raises(ArgumentTypeError):
        known_issues(*arguments)


@pytest.mark.parametrize("half", [{"model": object()}, {"batch": 1}])
def test_a_model_needs_its_batch(half: dict) -> None:
    with pytest.raises(ArgumentError, match="together"):
        known_issues(host(), "2.13.0", **half)


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=12) | st.none())
def test_no_version_makes_it_fail(torch: str, macos: str | None) -> None:
    machine = Host(kind=HostKind.APPLE_SILICON, os_name="macOS", os_version=macos)
    assert isinstance(known_issues(machine, torch), tuple)


def test_torch_stays_out() -> None:
    code = (
        "import sys; from mpskit import known_issues; known_issues()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)
