"""cpu_threads counts cores that help; set_cpu_threads applies the count and takes it back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpskit import cpu_threads, set_cpu_threads
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host import Host, find_machine
from mpskit.training.threads import suitable_threads


@pytest.mark.parametrize(
    ("cores", "usable", "workers", "on_cpu", "expected"),
    [
        (8, 16, 0, True, 8),  # hyper-threads do not count
        (8, 16, 4, True, 8),  # the workers have the rest
        (8, 16, 12, True, 4),
        (None, 4, 0, True, 4),
        (8, 2, 0, True, 2),  # affinity or quota
        (4, 4, 2, True, 2),
        (4, 4, 9, True, 1),
        (4, 4, 0, False, 3),
        (1, 1, 0, False, 1),
    ],
)
def test_threads_by_facts(cores, usable, workers, on_cpu, expected):
    assert suitable_threads(cores, usable, workers=workers, on_cpu=on_cpu) == expected


@given(
    st.one_of(st.none(), st.integers(1, 512)),
    st.integers(1, 512),
    st.integers(0, 600),
    st.booleans(),
)
def test_never_less_than_one_nor_more_than_usable(cores, usable, workers, on_cpu):
    assert 1 <= suitable_threads(cores, usable, workers=workers, on_cpu=on_cpu) <= usable


@pytest.mark.parametrize(
    ("machine", "expected"), [("m1-8gb", 4), ("m3-max-64gb", 12), ("m1-pro-32gb", 8)]
)
def test_a_mac_uses_its_performance_cores(machine, expected):
    host = Host.from_readings(find_machine(machine).readings())
    assert cpu_threads("cpu", host=host) == expected


def test_workers_take_the_efficiency_cores_first():
    host = Host.from_readings(find_machine("m1-8gb").readings())
    assert cpu_threads("cpu", host=host, num_workers=4) == 4
    assert cpu_threads("cpu", host=host, num_workers=6) == 2
    assert cpu_threads("mps", host=host, num_workers=6) == 1


def test_a_containers_quota_counts():
    host = Host(kind="linux", os_name="Linux", usable_cpus=3, logical_cpus=64)
    assert cpu_threads(host=host) == 3


def test_this_machine():
    assert cpu_threads() >= 1
    assert cpu_threads("cpu", num_workers=10_000) == 1


@pytest.mark.parametrize("bad", [-1, "2", True, 1.5])
def test_num_workers_nobody_can_use(bad):
    with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
        cpu_threads(num_workers=bad)
    assert caught.value.given is bad


def test_a_host_that_is_none():
    with pytest.raises(ArgumentTypeError, match="machine"):
        cpu_threads(host=8)


def test_set_and_restore():
    before = torch.get_num_threads()
    with set_cpu_threads(before + 1) as setting:
        assert torch.get_num_threads() == setting.threads == before + 1
    assert torch.get_num_threads() == before


def test_restored_after_an_error_and_by_hand():
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), set_cpu_threads(before + 1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before
    setting = set_cpu_threads(before + 2)
    assert torch.get_num_threads() == before + 2
    setting.restore()
    assert torch.get_num_threads() == before


def test_settings_nest():
    before = torch.get_num_threads()
    with set_cpu_threads(before + 1):
        with set_cpu_threads(before + 2):
            assert torch.get_num_threads() == before + 2
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_none_is_what_suits():
    with set_cpu_threads() as setting:
        assert torch.get_num_threads() == setting.threads == cpu_threads()


@pytest.mark.parametrize("bad", [0, -3, "4", True, 2.0])
def test_counts_nobody_can_set(bad):
    before = torch.get_num_threads()
    with pytest.raises((ArgumentError, ArgumentTypeError)):
        set_cpu_threads(bad)
    assert torch.get_num_threads() == before
