"""RAM, swap, containers and pressure: pure rules over texts, and files that are malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, MIB
from mpskit.host import Readings
from mpskit.system import memory as system
from mpskit.system.machine import replace_readings
from mpskit.system.memory import (
    group_room,
    memory_pressure,
    pressure_of_level,
    pressure_of_psi,
    status_bytes,
    system_memory,
)

V1, V2 = "memory.limit_in_bytes", "memory.max"


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, None),
        ({"memory.max": "1000", "memory.current": "400"}, 600),
        ({"memory.max": "1000\n", "memory.current": "1400\n"}, 0),
        ({"memory.max": "max", "memory.current": "400"}, None),
        ({"memory.max": "1000"}, None),
        ({"memory.current": "400"}, None),
        (
            {
                "memory.max": "1000",
                "memory.current": "400",
                "memory.stat": "anon 1\ninactive_file 100\n",
            },
            700,
        ),
        # More droppable than used cannot be: only what is used comes back.
        ({"memory.max": "1000", "memory.current": "400", "memory.stat": "inactive_file 900"}, 1000),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "100",
                "memory/memory.stat": "total_inactive_file 50",
            },
            950,
        ),
        ({"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "1"}, None),
        # A child's group and its parent's: the tighter one counts.
        (
            {
                "a/b/memory.max": "1000",
                "a/b/memory.current": "100",
                "a/memory.max": "600",
                "a/memory.current": "100",
            },
            500,
        ),
        ({"memory.max": "nonsense", "memory.current": "\x00"}, None),
        ({"memory.max": "²", "memory.current": "1"}, None),
    ],
)
def test_what_a_container_still_allows(files, room):
    assert group_room(files) == room


@given(
    st.dictionaries(
        st.sampled_from([V1, V2, "memory.current", "memory.stat"]) | st.text(), st.text()
    )
)
def test_no_file_makes_it_raise(files):
    room = group_room(files)
    assert room is None or room >= 0


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
    monkeypatch.setattr(system, "_GROUPS", tmp_path)
    monkeypatch.setattr(system, "_OWN_GROUPS", own)
    monkeypatch.setattr(system.sys, "platform", "linux")
    system._limiting.cache_clear()
    yield tmp_path / "job"
    system._limiting.cache_clear()


def test_available_memory_is_what_the_container_leaves(groups):
    (groups / "memory.max").write_text("3000000")
    (groups / "memory.current").write_text("1000000")
    assert system_memory().available == 2000000


def test_group_files_that_are_malformed_or_cannot_be_read_are_as_good_as_none(groups):
    (groups / "memory.max").write_bytes(b"\xff\xfe")
    (groups / "memory.current").mkdir()
    system._limiting.cache_clear()
    assert system_memory().available > 100 * MIB


def test_a_process_without_group_file_has_no_container(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_OWN_GROUPS", tmp_path / "absent")
    system._limiting.cache_clear()
    try:
        assert system_memory().available > 100 * MIB
    finally:
        system._limiting.cache_clear()


def test_pressure_without_its_file_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_PSI", tmp_path / "absent")
    assert memory_pressure() is None
    (tmp_path / "absent").write_text(psi("20.00", "0.00"))
    assert memory_pressure() == "warning"


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
