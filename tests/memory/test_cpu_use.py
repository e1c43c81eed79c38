"""What a step on the CPU takes of a data limit, and the search that knows it."""

import sys

import pytest
import torch

from mpskit import run_with_batch_size
from mpskit._base.sizes import MIB
from mpskit.memory import cpu_use
from mpskit.memory.cpu_use import CpuUse
from mpskit.memory.limit import limit_memory
from mpskit.system.limits import DataLimit
from mpskit.system.memory import restart_peak, status_bytes

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not restart_peak(),
    reason="no peak that can be started anew",
)


def limited(monkeypatch, soft):
    monkeypatch.setattr(cpu_use, "data_limit", lambda: DataLimit(soft, None))


def test_the_peak_of_a_step_is_seen_after_it_has_ended(monkeypatch):
    limited(monkeypatch, 1 << 40)
    held = torch.ones(48 * MIB, dtype=torch.uint8)
    del held
    use = CpuUse.now()
    assert use is not None
    held = torch.ones(32 * MIB, dtype=torch.uint8)
    del held
    assert 31 * MIB <= use.needed() <= 40 * MIB


def test_what_is_mapped_is_no_room(monkeypatch):
    limited(monkeypatch, status_bytes("VmData") + 100 * MIB)
    assert 90 * MIB <= CpuUse.now().room <= 110 * MIB
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


def test_three_tries_are_enough_under_a_limit():
    tried = []

    def train(batch_size):
        tried.append(batch_size)
        weight = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        kept = [torch.ones(2 * MIB, dtype=torch.uint8) for _ in range(batch_size)]
        (weight * len(kept)).backward()
        optimizer.step()
        return batch_size

    train(1)
    del tried[:]
    with limit_memory(status_bytes("VmData") + 200 * MIB, "cpu"):
        size = run_with_batch_size(train, 300)
    assert size >= 80  # more where earlier tests left mapped memory that malloc uses again
    assert tried[0] == 300
    assert len(tried) <= 4
