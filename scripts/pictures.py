"""Draws the pictures of README and docs into docs/images: python scripts/pictures.py [FOLDER].

They are made from the project's own estimates and from the published timings in
benchmarks/data/cpu_vs_mps.csv (needs mpskit[plot]). About half a minute on one core.
"""

from __future__ import annotations

import csv
import itertools
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mpskit import TensorSpec, estimate_training_memory

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
TIMINGS = ROOT / "benchmarks" / "data" / "cpu_vs_mps.csv"
DPI = 90
BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by every eye
LEVELS = {"op": "operator", "layer": "layer", "model_infer": "model", "model_train": "model"}


def timeline(path: Path) -> None:
    """Draw a training step of examples/finetune.py beside what an 8 GiB Mac can give."""
    example = runpy.run_path(str(ROOT / "examples" / "finetune.py"))
    rows = 64
    batch = (
        TensorSpec((rows, example["CONTEXT"]), "int64"),
        TensorSpec((rows * example["CONTEXT"],), "int64"),
    )
    estimate_training_memory(example["make_model"], batch, device="mps").plot(path, budget="m1-8gb")


def speedups(path: Path) -> None:
    """Draw each published pair: how long the CPU takes, and how many times faster MPS is."""
    figure, axes = _axes(8, 4.5)
    colours = {"operator": "#999999", "layer": BLUE, "model": ORANGE}
    for level, colour in colours.items():
        pairs = [(cpu, ratio) for found, cpu, ratio in _timings() if found == level]
        axes.scatter(*zip(*pairs, strict=True), s=9, alpha=0.6, color=colour, label=level, lw=0)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="time of a step on the CPU (s)",
        ylabel="CPU time / MPS time",
        title="Above the line MPS is faster: 1,103 published pairs, M1 to M5",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def shares(path: Path) -> None:
    """Draw the share of pairs in which MPS is faster, by how long the CPU takes."""
    edges = [0, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1, float("inf")]
    names = ["< 0.1 ms", "0.1 to 0.3", "0.3 to 1", "1 to 10", "10 to 100", "> 100 ms"]
    figure, axes = _axes(8, 4)
    sides = {"operators and layers": ({"operator", "layer"}, BLUE), "models": ({"model"}, ORANGE)}
    for place, (label, (levels, colour)) in enumerate(sides.items()):
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            won = [r > 1 for level, cpu, r in _timings() if level in levels and low <= cpu < high]
            share = sum(won) / len(won) if won else 0
            x = i + 0.4 * (place - 0.5)
            axes.bar(x, share, 0.38, color=colour, label=label if i == 0 else None)
            text = f"{share:.0%}\nof {len(won)}" if won else "no\nrows"
            axes.text(x, share + 0.01, text, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylim=(0, 1.15), xlabel="time of a step on the CPU", ylabel="MPS is faster")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=DPI)


def _timings() -> Iterator[tuple[str, float, float]]:
    """Yield level, CPU seconds of a step, and CPU time over MPS time."""
    with TIMINGS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            cpu, mps, steps = (float(row[k]) for k in ("cpu_time_s", "mps_time_s", "steps"))
            yield LEVELS[row["kind"]], cpu / steps, cpu / mps


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


PICTURES = {
    "timeline.png": timeline,
    "cpu_or_mps_times.png": speedups,
    "cpu_or_mps_shares.png": shares,
}


def main() -> None:
    """Draw all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw(folder / name)
        print(folder / name)


if __name__ == "__main__":
    main()
