"""The timeline of an estimate as a picture: stacked areas, one for each kind of memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.figures import new_figure, save_figure
from mpskit._base.sizes import GIB, MIB, format_bytes
from mpskit.errors import ArgumentError
from mpskit.estimate.result import KINDS

if TYPE_CHECKING:
    from mpskit.estimate.result import MemoryEstimate

__all__ = ["plot_timeline"]

# Held from the first event to the last at the bottom, what comes and goes at the top. The colours
# are told apart also by readers who do not see red and green as others do (Okabe and Ito, 2008).
_COLOURS = {
    "parameters": "#0072B2",
    "buffers": "#999999",
    "batch": "#000000",
    "optimizer": "#56B4E9",
    "gradients": "#009E73",
    "activations": "#E69F00",
    "temporaries": "#D55E00",
    "slack": "#DDDDDD",
}


def plot_timeline(
    estimate: MemoryEstimate, path: Path, *, usable: tuple[str, int] | None = None
) -> Path:
    """Draw the timeline into ``path``; the suffix chooses the format (``.png``, ``.svg``).

    Args:
        estimate: what is drawn; its highest moment is marked.
        path: the file.
        usable: whose memory is drawn as a line, and its bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the estimate has no timeline, or the file cannot be written.
    """
    if not estimate.timeline:
        raise ArgumentError("this estimate has no timeline to draw: one from a config has none")
    figure, axes = new_figure(10, 5)
    unit, name = (GIB, "GiB") if estimate.driver_bytes >= GIB else (MIB, "MiB")
    _areas(axes, estimate, unit)
    _peak(axes, estimate, unit)
    if usable is not None:
        axes.axhline(usable[1] / unit, color="red", linestyle="--", linewidth=1, label=usable[0])
    _phases(axes, estimate)
    axes.set_ylabel(name)
    axes.set_xlabel("allocation event")
    axes.set_title(
        f"{estimate.device}, {estimate.precision}: peak {format_bytes(estimate.peak_bytes)}, "
        f"allocator {format_bytes(estimate.driver_bytes)}",
        pad=45,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return save_figure(figure, path, dpi=120, bbox_inches="tight")


def _areas(axes: Any, estimate: MemoryEstimate, unit: int) -> None:
    points = estimate.timeline
    events = [point.event for point in points]
    kinds = [kind for kind in _COLOURS if any(getattr(p, f"{kind}_bytes") for p in points)]
    heights = [[getattr(p, f"{kind}_bytes") / unit for p in points] for kind in kinds]
    axes.stackplot(
        events,
        heights,
        labels=[KINDS[kind] for kind in kinds],
        colors=[_COLOURS[kind] for kind in kinds],
        step="post",
    )
    driver = [point.driver_bytes / unit for point in points]
    axes.step(events, driver, where="post", color="black", linewidth=1, label="allocator")
    axes.set_xlim(events[0], events[-1])
    axes.set_ylim(bottom=0)


def _peak(axes: Any, estimate: MemoryEstimate, unit: int) -> None:
    """Put a dot and the size at the moment with the most live bytes."""
    top = max(estimate.timeline, key=lambda point: point.live_bytes)
    axes.plot([top.event], [top.live_bytes / unit], "o", color="black", markersize=4)
    place = {"textcoords": "offset points", "xytext": (0, -12), "ha": "center", "fontsize": 8}
    text = f"peak {format_bytes(top.live_bytes)}"
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
    axes.annotate(text, (top.event, top.live_bytes / unit), bbox=box, **place)


def _phases(axes: Any, estimate: MemoryEstimate) -> None:
    """Mark where a step and a phase begin."""
    before = ""
    height = axes.get_ylim()[1]
    for point in estimate.timeline:
        name = f"{point.phase}, step {point.step + 1}" if point.phase != "setup" else ""
        if name and name != before:
            axes.axvline(point.event, color="grey", linewidth=0.5, linestyle=":")
            axes.text(point.event, height * 1.01, name, fontsize=7, rotation=30, va="bottom")
        before = name or before
