"""Where a plan is for: a machine's device, memory and dtypes."""

from __future__ import annotations

import pytest

from mpskit import Machine
from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.plan.places import THIS_MACHINE, find_place

_AUTOCAST = pytest.mark.from_torch("2.6", "MPS has autocast to bfloat16")


@pytest.mark.parametrize(
    ("machine", "device", "half", "mixed", "fastest", "faster"),
    [
        pytest.param("m1-16gb", "mps", "bf16", "bf16-mixed", "fp16", False, marks=_AUTOCAST),
        pytest.param("m4-16gb", "mps", "bf16", "bf16-mixed", "bf16", True, marks=_AUTOCAST),
        ("T4", "cuda", "fp16", "fp16-mixed", "fp16", True),
        ("A100", "cuda", "bf16", "bf16-mixed", "bf16", True),
        ("intel-mac-16gb", "cpu", None, None, None, False),
    ],
)
def test_what_a_machine_computes_in(
    machine: str,
    device: str,
    half: str | None,
    mixed: str | None,
    fastest: str | None,
    faster: bool,
) -> None:
    place = find_place(machine)
    assert (place.name, place.device) == (machine, device)
    assert (place.half, place.mixed, place.fastest) == (half, mixed, fastest)
    assert (place.half_rate > 1) is faster
    assert place.half_rate >= 1


@pytest.mark.parametrize(
    ("machine", "device", "noted"),
    [
        ("github-macos-15-vm", None, True),
        ("github-macos-15-vm", "cpu", False),
        ("m1-16gb", None, False),
        ("T4", None, False),
    ],
)
def test_nothing_is_tried_on_a_virtual_mac(machine: str, device: str | None, noted: bool) -> None:
    assert bool(find_place(machine, device).notes) is noted


def test_this_machine() -> None:
    place = find_place(device="cpu")
    assert (place.name, place.machine, place.device) == (THIS_MACHINE, None, "cpu")
    assert place.usable_bytes > 0
    assert place.environment(10**9) == {}


def test_a_machine_of_ones_own() -> None:
    place = find_place(Machine(chip="M2 Pro", ram_gib=32, macos="15.6"))
    assert place.device == "mps"
    assert "M2 Pro" in place.name


def test_a_budget_instead_of_the_machines() -> None:
    assert find_place("m1-16gb", budget="3GiB").usable_bytes == 3 * 2**30
    assert find_place("m1-16gb", budget=10**9).usable_bytes == 10**9


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"machine": "m1-15gb"}, UnknownMachineError),
        ({"machine": 3}, ArgumentTypeError),
        ({"machine": "m1-16gb", "device": "cuda"}, ArgumentError),
        ({"machine": "m1-16gb", "budget": 0}, ArgumentError),
        ({"machine": "m1-16gb", "budget": True}, ArgumentTypeError),
    ],
)
def test_bad_places(asked: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        find_place(**asked)  # type: ignore[arg-type]


def test_the_variables_that_hold_mps_to_a_cap() -> None:
    place = find_place("m1-16gb")
    assert place.recommended_bytes is not None
    held = place.environment(place.recommended_bytes // 2)
    assert float(held["PYTORCH_MPS_HIGH_WATERMARK_RATIO"]) == pytest.approx(0.5, abs=1e-3)
    assert float(held["PYTORCH_MPS_LOW_WATERMARK_RATIO"]) < 0.5
    assert find_place("m1-16gb", "cpu").environment(10**9) == {}
