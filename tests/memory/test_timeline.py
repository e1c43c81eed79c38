"""The picture of samples: its unit, its peak and the line of the machine's memory."""

import pytest

from mpskit._base.sizes import GIB, MIB
from mpskit.memory import timeline
from mpskit.memory.timeline import Sample, growth_without_tensors

figures = pytest.importorskip("matplotlib.figure")


def drawn(sizes, ram):
    axes = figures.Figure().add_subplot()
    samples = [Sample(float(at), footprint_bytes=size) for at, size in enumerate(sizes)]
    timeline._draw(axes, samples, "title", ram)
    return axes


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_a_small_job_is_drawn_in_mib_without_the_machines_memory():
    axes = drawn([10 * MIB, 300 * MIB, 20 * MIB], 16 * GIB)
    assert axes.get_ylabel() == "MiB"
    assert labels(axes) == ["process"]
    assert axes.get_ylim()[1] < 1000


def test_a_large_one_in_gib_with_it():
    axes = drawn([GIB, 12 * GIB, 2 * GIB], 16 * GIB)
    assert axes.get_ylabel() == "GiB"
    assert labels(axes) == ["process", "RAM"]


def test_the_peak_is_marked_where_it_is():
    (note,) = drawn([MIB, 300 * MIB, 20 * MIB], None).texts
    assert note.get_text() == "peak 300.00 MiB"
    assert note.xy == (1.0, 300.0)


@pytest.mark.parametrize("sizes", [[None, None], [0, 0], []])
def test_without_a_figure_nothing_is_marked(sizes):
    assert not drawn(sizes, 16 * GIB).texts


def test_the_first_of_two_equal_peaks_is_marked_of_what_the_process_holds():
    axes = figures.Figure().add_subplot()
    rows = [(MIB, 5 * MIB), (3 * MIB, 5 * MIB), (3 * MIB, 9 * MIB)]
    samples = [
        Sample(float(at), footprint_bytes=process, allocated_bytes=tensors)
        for at, (process, tensors) in enumerate(rows)
    ]
    timeline._draw(axes, samples, "title", None)
    (note,) = axes.texts
    assert note.xy == (1.0, 3.0)
    assert labels(axes) == ["process", "tensors"]


def test_the_gpu_has_an_axis_of_its_own():
    axes = figures.Figure().add_subplot()
    samples = [Sample(0.0, footprint_bytes=MIB, gpu_percent=40.0), Sample(1.0, gpu_percent=90.0)]
    timeline._draw(axes, samples, "title", None)
    (right,) = [one for one in axes.figure.axes if one is not axes]
    assert right.get_ylim() == (0, 100)
    assert [line.get_xydata().tolist() for line in right.lines] == [[[0.0, 40.0], [1.0, 90.0]]]


@pytest.mark.parametrize(("share", "told"), [(4, True), (5, False)])
def test_ram_is_drawn_from_a_quarter_of_it_on(share, told):
    assert ("RAM" in labels(drawn([4 * GIB], share * 4 * GIB))) is told


def grown(reserved, allocated=None):
    live = allocated or [0] * len(reserved)
    return growth_without_tensors(
        [
            Sample(float(at), reserved_bytes=held * MIB, allocated_bytes=used * MIB)
            for at, (held, used) in enumerate(zip(reserved, live, strict=True))
        ]
    )


# What the driver holds in MiB at the samples, what tensors do, and by how much it grew without.
GROWTH = [
    ([400] * 5 + [500] * 5 + [600] * 5 + [656] * 5, None, 256),
    ([400] * 5 + [500] * 5 + [600] * 5 + [655] * 5, None, None),  # a MiB less than counts
    ([400] * 4 + [500] * 4 + [600] * 4 + [656] * 4, None, 256),  # 16 samples
    ([400] * 4 + [500] * 4 + [600] * 4 + [656] * 3, None, None),  # 15
    ([5000] * 4 + [5200] * 4 + [5400] * 4 + [5500] * 4, None, 500),  # a tenth
    ([5000] * 4 + [5200] * 4 + [5400] * 4 + [5499] * 4, None, None),
    ([400] * 8 + [600] * 4 + [700] * 4, None, None),  # one part as high as the one before
    ([400] * 12 + [800] * 4, None, None),  # one step
    ([400] * 4 + [500] * 4 + [600] * 4 + [800] * 4, [0] * 12 + [40] * 4, 400),
    ([400] * 4 + [500] * 4 + [600] * 4 + [800] * 4, [0] * 12 + [41] * 4, None),  # tensors too
    # A tenth less is no drop, one more MiB is, and what came before it does not count.
    ([1000] + [900] * 3 + [1100] * 4 + [1200] * 4 + [1300] * 4, None, 300),
    ([1000] + [899] * 3 + [1100] * 4 + [1200] * 4 + [1300] * 4, None, None),
    ([1000] + [400] * 4 + [500] * 4 + [600] * 4 + [656] * 4, None, 256),
    # Only the newest sixty: four parts of fifteen.
    ([100] * 40 + [400] * 15 + [500] * 15 + [600] * 15 + [656] * 15, None, 256),
]


@pytest.mark.parametrize(("reserved", "allocated", "growth"), GROWTH)
def test_what_is_growth_without_tensors(reserved, allocated, growth):
    assert grown(reserved, allocated) == (None if growth is None else growth * MIB)


def test_samples_without_both_figures_do_not_count():
    known = [Sample(0.0, reserved_bytes=GIB * at, allocated_bytes=0) for at in range(1, 17)]
    assert growth_without_tensors(known) == 12 * GIB
    for field in ("reserved_bytes", "allocated_bytes"):
        unknown = [one._replace(**{field: None}) for one in known]
        assert growth_without_tensors(unknown) is None
        assert growth_without_tensors([*unknown, *known]) == 12 * GIB
