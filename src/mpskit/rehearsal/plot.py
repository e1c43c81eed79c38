"""The memory of a rehearsal over time, with the machines' limits as lines."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.figures import new_figure, save_figure
from mpskit._base.sizes import GIB, MIB
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.rehearsal.result import Rehearsal

__all__ = ["plot_rehearsal"]

_MOST_LINES = 4  # machines whose limits are drawn
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")


def plot_rehearsal(report: Rehearsal, path: Path) -> Path:
    """Draw live and driver memory into ``path``; the suffix chooses the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: nothing was allocated, or the file cannot be written.
    """
    points = report.timeline
    if not points:
        raise ArgumentError("nothing was allocated on the GPU: there is no timeline to draw")
    figure, axes = new_figure(10, 5, layout="constrained")
    unit, name = (GIB, "GiB") if report.driver_bytes >= GIB else (MIB, "MiB")
    events = [point.event for point in points]
    axes.plot(events, [one.driver_bytes / unit for one in points], color="#999999", label="driver")
    live = [one.live_bytes / unit for one in points]
    axes.fill_between(events, live, color="#56B4E9", alpha=0.6, label="tensors")
    for before, after in itertools.pairwise(points):
        if after.step != before.step:
            axes.axvline(after.event, color="#000000", linewidth=0.5, alpha=0.4)
    _limits(axes, report, unit)
    axes.set_xlabel("allocation event (vertical lines: optimizer steps)")
    axes.set_ylabel(name)
    axes.set_title(str(report.machines[0]), fontsize=9)
    axes.legend(loc="upper left", fontsize=8)
    return save_figure(figure, path, dpi=120)


def _limits(axes: Any, report: Rehearsal, unit: int) -> None:
    """Draw what each machine's allocator grants, where the picture is not lost in it."""
    for machine, colour in zip(report.machines[:_MOST_LINES], _COLOURS, strict=False):
        for size, what, style in (
            (machine.usable_bytes, "usable", "--"),
            (machine.limit_bytes, "limit", "-"),
        ):
            if size is not None and size <= 4 * report.driver_bytes:
                label = f"{machine.machine}: {what}"
                axes.axhline(size / unit, color=colour, linestyle=style, linewidth=1, label=label)
