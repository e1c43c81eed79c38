"""The picture of samples: its unit, its peak and the line of the machine's memory."""

import pytest

from mpskit._base.sizes import GIB, MIB
from mpskit.memory import timeline
from mpskit.memory.timeline import Sample

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


def test_without_a_figure_nothing_is_marked():
    assert not drawn([None, None], 16 * GIB).texts
