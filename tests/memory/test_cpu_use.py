"""What a step on the CPU takes of a data limit, and the search that knows it."""

import sys

import pytest

from mpskit._base.sizes import MIB
from mpskit.memory import cpu_use
from mpskit.memory.cpu_use import CpuUse
from mpskit.system.limits import DataLimit
from mpskit.system.memory import restart_peak

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not restart_peak(),
    reason="no peak that can be started anew",
)


def limited(monkeypatch, soft):
    monkeypatch.setattr(cpu_use, "data_limit", lambda: DataLimit(soft, None))


def test_the_peak_of_a_step_is_seen_after_it_has_ended(under_limits):
    assert 31 * MIB <= under_limits["peak"] <= 40 * MIB


def test_what_is_mapped_is_no_room(under_limits, monkeypatch):
    assert 90 * MIB <= under_limits["room"] <= 110 * MIB
    limited(monkeypatch, 1)
    assert CpuUse.now().room == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_limit", lambda: DataLimit(None, None)),
        ("restart_peak", lambda: False),
        ("status_bytes", lambda field: None),
        ("status_bytes", lambda field: None if field == "VmRSS" else 1),
    ],
)
def test_without_a_limit_or_a_peak_nothing_is_known(monkeypatch, name, value):
    limited(monkeypatch, 1 << 40)
    monkeypatch.setattr(cpu_use, name, value)
    assert CpuUse.now() is None


def test_other_systems_have_no_such_peak(monkeypatch):
    limited(monkeypatch, 1 << 40)
    monkeypatch.setattr(cpu_use.sys, "platform", "darwin")
    assert CpuUse.now() is None


def test_a_peak_that_cannot_be_read_any_more_is_none(monkeypatch):
    monkeypatch.setattr(cpu_use, "status_bytes", lambda field: None)
    assert CpuUse(room=1, resident=1).needed() is None


def test_three_tries_are_enough_under_a_limit(under_limits):
    size, tried = under_limits["search"]["size"], under_limits["search"]["tried"]
    assert 80 <= size <= 100
    assert tried[0] == 300
    assert len(tried) <= 3
