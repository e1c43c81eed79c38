"""Snapshots: every figure or None, and where the peak comes from."""

import ctypes
import mmap
import os
import struct

import psutil
import pytest
from fake_backend import FakeBackend

from mpskit import MemorySnapshot, memory_snapshot
from mpskit._base.sizes import GIB, MIB
from mpskit.backends.memory import device_in_use
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.memory import snapshot
from mpskit.system import process as footprint
from mpskit.system.process import footprint_bytes, footprint_of, phys_footprint_in


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch):
    monkeypatch.setattr(snapshot, "_seen", {})


def test_figures_side_by_side(mps: FakeBackend):
    mps.peak = 3 * GIB
    found = memory_snapshot("mps")
    assert (found.allocated_bytes, found.reserved_bytes) == (GIB, 4 * GIB)
    assert (found.peak_bytes, found.peak_source) == (3 * GIB, "native")
    assert found.footprint_bytes > 10 * MIB
    assert found.available_bytes > 0
    assert "held by driver" in str(found)
    assert MemorySnapshot.model_validate_json(found.model_dump_json()) == found


def test_where_torch_keeps_no_peak_it_is_the_most_that_was_seen(mps):
    mps.allocated = 2 * GIB
    memory_snapshot("mps")
    mps.allocated = GIB
    found = memory_snapshot("mps")
    assert (found.peak_bytes, found.peak_source) == (2 * GIB, "sampled")


def test_the_cpu_counts_no_tensors():
    found = memory_snapshot("cpu")
    assert (found.allocated_bytes, found.peak_bytes, found.peak_source) == (None, None, None)
    assert found.footprint_bytes > 10 * MIB


def test_a_backend_that_fails_becomes_a_note(mps):
    def broken():
        raise RuntimeError("invalid low watermark ratio 1.4\nException raised from ...")

    mps.allocated = mps.reserved = mps.peak = broken
    found = memory_snapshot("mps")
    assert found.allocated_bytes is None
    assert found.notes == ("RuntimeError: invalid low watermark ratio 1.4",)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu", "hpu", "meta"])
def test_no_device_makes_it_raise(device):
    assert memory_snapshot(device).device == device


def test_the_default_is_the_device_in_use():
    assert memory_snapshot().device == str(device_in_use())


def test_what_is_no_device_is_refused():
    with pytest.raises(ArgumentError):
        memory_snapshot("banana")
    with pytest.raises(ArgumentTypeError):
        memory_snapshot(0)


def test_the_footprint_grows_with_what_the_process_holds():
    before = footprint_bytes()
    # Its own mapping: what earlier tests freed may be in the footprint still, and be used again.
    with mmap.mmap(-1, 120 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"1" * len(held))
        assert footprint_bytes() - before > 100 * MIB


def test_the_footprint_of_another_process_and_of_none():
    assert footprint_bytes(os.getppid()) is not None
    assert footprint_bytes(2**22 + 1) is None


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), ValueError("malformed"), IndexError()])
def test_a_process_that_may_not_be_asked_has_no_footprint(monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(psutil.Process, "memory_info", fail)
    assert footprint_bytes() is None
    assert memory_snapshot("cpu").footprint_bytes is None


class Info:
    def __init__(self, **figures):
        self.__dict__ |= figures


@pytest.mark.parametrize(
    ("info", "size"),
    [
        (Info(rss=100, shared=30), 70),
        (Info(rss=100, shared=130), 0),
        (Info(rss=100, private=60), 60),
        (Info(rss=100), 100),
    ],
)
def test_the_footprint_by_what_a_system_tells(info, size):
    assert footprint_of(info) == size


def rusage(phys_footprint):
    """Lay out ``struct rusage_info_v0``: a uuid, then ten 64-bit counters, the eighth its footprint."""
    return b"u" * 16 + struct.pack("=10Q", 1, 2, 3, 4, 5, 6, 7, phys_footprint, 9, 10)


def test_the_footprint_within_macos_own_structure():
    assert phys_footprint_in(rusage(5 * GIB) + bytes(100)) == 5 * GIB


def test_macos_is_asked_through_libsystem(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def proc_pid_rusage(pid, flavour, buffer):
            asked.append((pid.value, flavour))
            raw = rusage(7 * GIB)
            ctypes.memmove(buffer, raw, len(raw))
            return 0 if pid.value != 1 else -1

    monkeypatch.setattr(footprint.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: Library)
    assert footprint_bytes(1234) == 7 * GIB
    assert footprint_bytes(1) is None
    assert asked == [(1234, 0), (1, 0)]
