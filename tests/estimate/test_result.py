"""The result's verdict, table, difference and picture."""

import pytest

from mpskit import memory_budget_for
from mpskit._base.sizes import GIB
from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.estimate import MemoryEstimate, Peak, TimelinePoint
from mpskit.host import Host
from mpskit.host.kinds import HostKind


def make(**change):
    fields = {
        "device": "mps",
        "torch_version": "2.13.0",
        "parameters_bytes": GIB,
        "gradients_bytes": GIB,
        "optimizer_bytes": 2 * GIB,
        "peak_bytes": 4 * GIB,
        "driver_bytes": 5 * GIB,
        "peak": Peak(op="mul", module="layers.0", phase="backward", step=1),
    }
    return MemoryEstimate(**{**fields, **change})


@pytest.mark.parametrize(
    ("budget", "answer", "margin"),
    [
        (8, "fits", 3),
        (6, "fits", 1),
        (5.4, "tight", 0.4),
        (4.5, "tight", -0.5),
        (3, "does-not-fit", -2),
    ],
)
def test_a_verdict(budget, answer, margin):
    verdict = make().fits(int(budget * GIB))
    assert verdict.answer == answer
    assert bool(verdict) is (answer != "does-not-fit")
    assert verdict.margin_bytes == pytest.approx(margin * GIB, abs=2)
    assert str(verdict).startswith(answer)


def test_a_step_whose_heaps_do_not_fit_is_told_to_run():
    text = str(make().fits(int(4.5 * GIB)))
    assert text.startswith("tight: it should run, and may swap")
    assert "too much" not in text


def test_the_high_end_of_a_range_decides():
    known = make(device="cpu", peak_bytes=4 * GIB, driver_bytes=4 * GIB)
    wide = make(device="cpu", peak_bytes=4 * GIB, driver_bytes=4 * GIB, peak_margin_bytes=GIB)
    assert known.peak_high_bytes == 4 * GIB
    assert wide.peak_high_bytes == 5 * GIB
    assert known.fits(int(4.8 * GIB)).answer == "fits"
    verdict = wide.fits(int(4.8 * GIB))
    assert (verdict.answer, verdict.needed_bytes) == ("does-not-fit", 5 * GIB)
    assert wide.fits(int(5.2 * GIB)).answer == "tight"
    assert "at most" in str(wide)
    assert "at most" not in str(known)
    assert wide.model_dump(mode="json")["peak_margin_bytes"] == GIB


def test_a_size_and_a_machine_without_mps():
    assert make().fits("6GiB") == make().fits(6 * GIB)
    usable = make().fits("rosetta-m2-16gb").usable_bytes
    assert usable > memory_budget_for(16 * GIB).usable_bytes


def test_a_budget_of_a_machine():
    usable = memory_budget_for(16 * GIB, macos="15.6", chip="M1").usable_bytes
    assert make().fits("m1-16gb").usable_bytes == usable
    assert make().fits(memory_budget_for(16 * GIB, macos="15.6", chip="M1")).usable_bytes == usable


@pytest.mark.parametrize(
    ("budget", "error"),
    [
        (0, ArgumentError),
        (True, ArgumentTypeError),
        (1.5, ArgumentTypeError),
        ("m0-1gb", UnknownMachineError),
        ("16", ArgumentError),
    ],
)
def test_no_budget(budget, error):
    with pytest.raises(error):
        make().fits(budget)


def test_the_table_has_a_line_for_each_kind_that_is_there():
    text = str(make())
    for line in ("model parameters", "gradients", "optimizer state", "total at the peak"):
        assert line in text
    assert "buffers" not in text
    assert "peak at mul in layers.0 (backward, step 2)" in text


def test_a_difference():
    difference = make().diff(make(gradients_bytes=0, peak_bytes=3 * GIB))
    assert (difference.gradients_bytes, difference.peak_bytes, difference.driver_bytes) == (
        GIB,
        GIB,
        0,
    )
    assert "gradients" in str(difference)
    assert "driver" not in str(difference)


def test_a_picture(tmp_path):
    points = tuple(
        TimelinePoint(event=i, step=0, phase="forward", parameters_bytes=i * GIB) for i in range(4)
    )
    path = make(timeline=points).plot(tmp_path / "timeline.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="no timeline"):
        make().plot(tmp_path / "none.png")


def test_it_survives_json():
    assert MemoryEstimate.model_validate_json(make().model_dump_json()) == make()


def test_a_picture_with_what_a_machine_gives(tmp_path):
    points = tuple(
        TimelinePoint(event=i, step=0, phase="forward", parameters_bytes=GIB) for i in range(2)
    )
    found = make(timeline=points)
    plain, lined = tmp_path / "plain.png", tmp_path / "lined.png"
    found.plot(plain)
    found.plot(lined, budget="6GiB")
    assert plain.read_bytes() != lined.read_bytes()


def test_an_estimate_without_a_peak_has_no_line_for_it():
    assert "peak at" not in str(make(peak=None))
    assert "peak at" in str(make())


@pytest.mark.parametrize(
    ("budget", "machine", "said"),
    [
        (None, None, "give a budget or machine="),
        ("6GiB", "m1-16gb", "give a budget or machine="),
        (Host(kind=HostKind.LINUX, os_name="Linux"), None, "nothing is known of the RAM"),
    ],
)
def test_a_budget_that_nobody_knows(budget, machine, said):
    with pytest.raises(ArgumentError, match=said):
        make().fits(budget, machine=machine)
