"""The memory of what a plan compared, as bars beside what the machine gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.figures import new_figure, save_figure
from mpskit._base.sizes import GIB, MIB, format_bytes

if TYPE_CHECKING:
    from mpskit.plan.table import PlanTable

__all__ = ["plot_plan", "plot_table"]

_COLOURS = {"fits": "#009E73", "tight": "#E69F00", "does-not-fit": "#D55E00"}


def plot_plan(plan: Any, path: Path) -> Path:
    """Draw a bar for each way that was compared, and the machine's limit as a line.

    Args:
        plan: of training or of inference.
        path: the file; its suffix chooses the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the file cannot be written.
    """
    ways = plan.compared
    names = [f"{one.words} (chosen)" if one.chosen else one.words for one in ways]
    figure, axes, scale = _bars(
        names, [one.needed_bytes for one in ways], [one.answer for one in ways], plan.usable_bytes
    )
    axes.axvline(plan.usable_bytes / scale, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"{format_bytes(plan.usable_bytes)} usable",
        (plan.usable_bytes / scale, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
    )
    tokens = f", {plan.seq_len} tokens" if plan.seq_len else ""
    axes.set_title(f"{plan.model} on {plan.machine}: {plan.batch_size} x{tokens}, < chosen", pad=18)
    return save_figure(figure, path, dpi=120)


def plot_table(table: PlanTable, path: Path) -> Path:
    """Draw a bar for each machine, and what the machine gives as a mark on it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the file cannot be written.
    """
    plans = table.plans
    usable = [plan.usable_bytes for plan in plans]
    names = [f"{plan.machine} ({plan.batch_size} x {plan.seq_len or 1})" for plan in plans]
    figure, axes, scale = _bars(
        names, [plan.needed_bytes for plan in plans], [plan.verdict for plan in plans], max(usable)
    )
    axes.scatter([size / scale for size in usable], names, marker="|", s=90, color="black")
    axes.set_title(f"{table.model}: need (bar) and what the machine gives (mark)")
    return save_figure(figure, path, dpi=120)


def _bars(
    names: Sequence[str], needs: Sequence[int], answers: Sequence[str], limit: int
) -> tuple[Any, Any, int]:
    """Return a figure with a bar for each name, its axes, and the bytes of its unit."""
    figure, axes = new_figure(8, 1.5 + 0.32 * len(names), layout="constrained")
    most = max([*needs, limit])
    scale, unit = (GIB, "GiB") if most >= GIB else (MIB, "MiB")
    bars = axes.barh(
        names, [need / scale for need in needs], color=[_COLOURS[answer] for answer in answers]
    )
    axes.bar_label(bars, labels=[f"{need / scale:.3g}" for need in needs], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, most / scale * 1.12)
    axes.set_xlabel(unit)
    for name in sorted(set(answers), key=list(_COLOURS).index):
        axes.plot([], [], "s", color=_COLOURS[name], label=name)
    axes.legend(loc="lower right")
    return figure, axes, scale
