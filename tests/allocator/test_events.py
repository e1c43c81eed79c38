"""Replays: events in, peaks and timeline out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpskit._base.sizes import GIB, MIB
from mpskit.allocator import AllocatorLimitError, Event, allocator_for, replay
from mpskit.errors import ArgumentError

_EVENTS = [
    Event("alloc", 1, 10 * MIB),
    Event("alloc", 2, 100),
    Event("free", 1, 0),
    Event("alloc", 1, 4 * MIB),
    Event("free", 2, 100),
]


def test_the_timeline_has_a_pair_for_each_event() -> None:
    result = replay(_EVENTS, allocator_for("mps", torch_version="2.13.0"))
    driver = GIB + 8 * MIB
    assert result.timeline == (
        (10 * MIB, GIB),
        (10 * MIB + 256, driver),
        (256, driver),
        (10 * MIB + 256, driver),  # the cached 10 MiB serve 4 MiB whole
        (10 * MIB, driver),
    )
    assert result.peak_live_bytes == 10 * MIB + 256
    assert str(result) == "peak 10.00 MiB live, 1.01 GiB held from the driver"


def test_the_same_events_on_other_devices() -> None:
    cpu = replay(_EVENTS, allocator_for("cpu", torch_version="2.13.0"), timeline=False)
    assert (cpu.peak_live_bytes, cpu.peak_driver_bytes, cpu.timeline) == (
        10 * MIB + 100,
        10 * MIB + 100,
        (),
    )
    cuda = replay([tuple(event) for event in _EVENTS], allocator_for("cuda", torch_version="2.13"))
    assert (cuda.peak_live_bytes, cuda.peak_driver_bytes) == (10 * MIB + 512, 12 * MIB)


@pytest.mark.parametrize(
    "events",
    [
        [("alloc", 1, 5), ("alloc", 1, 5)],
        [("free", 1, 5)],
        [("alloc", 1, 5), ("free", 1, 5), ("free", 1, 5)],
        [("resize", 1, 5)],
    ],
)
def test_events_that_cannot_be(events: list[tuple[str, int, int]]) -> None:
    with pytest.raises(ArgumentError, match="an event is") as caught:
        replay(events, allocator_for("cpu", torch_version="2.13.0"))
    assert caught.value.given == events[-1]


def test_a_limit_ends_the_replay() -> None:
    model = allocator_for("mps", torch_version="2.13.0", recommended_bytes=GIB)
    with pytest.raises(AllocatorLimitError, match=r"max allowed: 1\.70 GiB"):
        replay([("alloc", i, 600 * MIB) for i in range(5)], model)


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ArgumentError, match="'hpu'"):
        allocator_for("hpu", torch_version="2.13.0")


def test_the_models_import_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from mpskit.allocator import allocator_for; "
        "allocator_for('mps', torch_version='2.14').allocate(5); "
        "print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
