"""A comparison of devices as a picture: a bar for each, with its confidence interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpskit._base.figures import new_figure, save_figure

if TYPE_CHECKING:
    from mpskit.speed.compare import Comparison

__all__ = ["plot_comparison"]

_WINNER, _OTHER = "#009E73", "#999999"


def plot_comparison(comparison: Comparison, path: Path) -> Path:
    """Draw the bars into ``path``; the suffix chooses the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the file cannot be written.
    """
    timings = comparison.timings
    figure, axes = new_figure(7, 1.2 + 0.5 * len(timings), layout="constrained")
    scale, unit = (1e3, "ms") if timings[-1].median < 1 else (1.0, "s")
    names = [timing.device for timing in timings]
    medians = [timing.median * scale for timing in timings]
    below = [(timing.median - timing.low) * scale for timing in timings]
    above = [(timing.high - timing.median) * scale for timing in timings]
    colours = [_WINNER if name == comparison.winner else _OTHER for name in names]
    axes.barh(names, medians, xerr=[below, above], color=colours, capsize=3)
    for name, timing, median in zip(names, timings, medians, strict=True):
        axes.annotate(
            f"{median:.3g} {unit}",
            (timing.high * scale, name),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.set_xlim(0, max(timing.high for timing in timings) * scale * 1.2)
    axes.set_xlabel(f"{unit} a step (median, 95% interval)")
    clear = "" if comparison.clear else ", no clear winner"
    axes.set_title(f"{comparison.winner} is {comparison.speedup:.2f} times faster{clear}")
    return save_figure(figure, path, dpi=120)
