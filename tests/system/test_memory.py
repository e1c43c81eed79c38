"""RAM, swap, containers and pressure: pure rules over texts, and files that are malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, MIB
from mpskit.host import Readings
from mpskit.system import cgroups
from mpskit.system import memory as system
from mpskit.system.machine import replace_readings
from mpskit.system.memory import (
    memory_pressure,
    pressure_of_level,
    pressure_of_psi,
    restart_peak,
    status_bytes,
    system_memory,
)


@given(st.text())
def test_no_text_of_the_kernel_makes_pressure_raise(text):
    assert pressure_of_level(text) in (None, "normal", "warning", "critical")
    assert pressure_of_psi(text) in (None, "normal", "warning", "critical")


@pytest.mark.parametrize(
    ("text", "pressure"),
    [("1", "normal"), ("2\n", "warning"), ("4", "critical"), ("3", None), ("", None)],
)
def test_the_levels_of_macos(text, pressure):
    assert pressure_of_level(text) == pressure


def psi(some, full):
    lines = [f"some avg10={some} avg60=0.00 avg300=0.00 total=0"]
    return "\n".join([*lines, f"full avg10={full} avg60=0.00 avg300=0.00 total=0"])


@pytest.mark.parametrize(
    ("text", "pressure"),
    [
        (psi("0.00", "0.00"), "normal"),
        (psi("9.99", "0.00"), "normal"),
        (psi("10.00", "9.99"), "warning"),
        (psi("50.00", "10.00"), "critical"),
        ("some avg10=30.00 avg60=0.00 avg300=0.00 total=0", "warning"),
        ("full avg10=30.00 avg60=0.00 avg300=0.00 total=0", None),
        ("some avg10=nan avg60", None),
    ],
)
def test_the_shares_of_linux(text, pressure):
    assert pressure_of_psi(text) == pressure


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The control group files of a process in ``/job``, in a folder of our own."""
    (tmp_path / "job").mkdir()
    own = tmp_path / "cgroup"
    own.write_text("0::/job\n")
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_MEMBERSHIP", own)
    monkeypatch.setattr(system.sys, "platform", "linux")
    cgroups._limiting.cache_clear()
    yield tmp_path / "job"
    cgroups._limiting.cache_clear()


def test_available_memory_is_what_the_container_leaves(groups):
    (groups / "memory.max").write_text("3000000")
    (groups / "memory.current").write_text("1000000")
    assert system_memory().available == 2000000


def test_group_files_that_are_malformed_or_cannot_be_read_are_as_good_as_none(groups):
    (groups / "memory.max").write_bytes(b"\xff\xfe")
    (groups / "memory.current").mkdir()
    cgroups._limiting.cache_clear()
    assert system_memory().available > 100 * MIB


def test_a_process_without_group_file_has_no_container(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroups, "_MEMBERSHIP", tmp_path / "absent")
    cgroups._limiting.cache_clear()
    try:
        assert system_memory().available > 100 * MIB
    finally:
        cgroups._limiting.cache_clear()


def test_pressure_without_its_file_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_PSI", tmp_path / "absent")
    assert memory_pressure() is None
    (tmp_path / "absent").write_text(psi("20.00", "0.00"))
    assert memory_pressure() == "warning"


def test_a_mac_is_asked_for_its_level(monkeypatch):
    asked = []

    def read(numbers):
        asked.append(numbers)
        return levels.pop()

    levels: list[dict[str, str]] = [{}, {"kern.memorystatus_vm_pressure_level": "4"}]
    monkeypatch.setattr(system.sys, "platform", "darwin")
    monkeypatch.setattr(system, "read_sysctls", read)
    assert memory_pressure() == "critical"
    assert memory_pressure() is None
    assert asked == [("kern.memorystatus_vm_pressure_level",)] * 2


def test_replaced_readings_are_honoured():
    readings = Readings(
        memory_total=8 * GIB,
        memory_available=3 * GIB,
        swap_used=1,
        sysctl={"kern.memorystatus_vm_pressure_level": "2"},
    )
    replace_readings(readings)
    try:
        assert system_memory() == (8 * GIB, 3 * GIB, None, 1)
        assert memory_pressure() == "warning"
    finally:
        replace_readings(None)


def test_a_size_of_the_processs_status():
    assert status_bytes("VmData") > MIB
    assert status_bytes("VmNothing") is None
    assert status_bytes("VmData", pid=2**22 + 1) is None


def test_a_peak_that_cannot_start_anew_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "Path", lambda name: tmp_path / "missing" / "clear_refs")
    assert restart_peak() is False


def test_a_peak_starts_anew_by_what_the_kernel_asks_for(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "Path", lambda name: tmp_path / name.rpartition("/")[2])
    assert restart_peak() is True
    assert (tmp_path / "clear_refs").read_text() == "5"
