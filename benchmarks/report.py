"""Writes a run's results as a page with pictures: python benchmarks/report.py [FOLDER].

FOLDER (default: docs) holds ``benchmarks/results.json``; ``benchmarks.md`` and the pictures
``images/bench_*.png`` are written beside it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from results import Column, Model, Row, Section, Size, Table, format_value, table_parts

__all__ = ["DOCS", "Environment", "Failure", "Ran", "Results", "draw", "page", "write"]

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = "benchmarks/results.json"
DPI = 100
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # told apart by every eye
COLOURS = {"ours": BLUE, "peer": ORANGE, None: GREY}
MAKE = "make bench"


class Environment(Model):
    """Where a run was made; nothing in it says whose machine it was."""

    processor: str
    cpus: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]
    threads: int


class Ran(Model):
    """A section, when it was measured, and in how many seconds of the clock and of CPUs."""

    section: Section
    seconds: float
    cpu_seconds: float = 0.0
    commit: str
    date: str


class Failure(Model):
    """A section that could not be measured."""

    name: str
    error: str


class Results(Model):
    """A whole run, as ``results.json`` has it."""

    schema_version: int = 1
    size: Size = Size.RUN
    environment: Environment
    ran: tuple[Ran, ...] = ()
    failed: tuple[Failure, ...] = ()


def page(results: Results) -> str:
    """Return the Markdown of benchmarks.md."""
    return "\n\n".join(map(_wrapped, _parts(results))) + "\n"


def _wrapped(part: str) -> str:
    """Return a paragraph in lines; tables, lists and headings stay as they are."""
    if part.startswith(("|", "#", "!", "<")) or "\n" in part:
        return part
    kept = re.sub("`[^`]+`", lambda code: code[0].replace(" ", "\0"), part)  # code is not broken
    filled = textwrap.fill(kept, 100, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\0", " ")


def _parts(results: Results) -> Iterator[str]:
    yield f"<!-- written by benchmarks/report.py from {RESULTS}: do not edit, run `{MAKE}` -->"
    yield "# What was measured"
    if results.size is Size.TINY:
        yield "**A trial of the scripts with their smallest sizes: these figures mean nothing.**"
    yield _where(results)
    yield _legend()
    yield _contents(results)
    for failure in results.failed:
        yield f"**{failure.name} failed in this run**: `{failure.error}`"
    for ran in results.ran:
        yield from _section(ran)


def _where(results: Results) -> str:
    here = results.environment
    total = sum(ran.seconds for ran in results.ran)
    commits = list(dict.fromkeys(f"{ran.commit} ({ran.date})" for ran in results.ran))
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    return (
        f"`{MAKE}` writes this page: {len(results.ran)} section{'s' * (len(results.ran) != 1)} in "
        f"{total / 60:.1f} minutes, at commit {' and '.join(commits)}, on {here.processor} with "
        f"{here.cpus} CPUs and {here.memory_gib:.0f} GiB, {here.system}, Python {here.python}, "
        f"{here.threads} thread a process. Installed: {versions}. No Mac and no GPU was used."
    )


def _legend() -> str:
    return (
        "Whoever is compared ran in the same run, in turn, on the same input. Below each table "
        "stands what was worse than a peer, found by comparing the rows: every column that says "
        "which of two values is better, against the best peer of the same case. Times within a "
        "tenth are called equal. In the pictures mpskit is blue, a peer orange, and a bound or the "
        "same work without either grey."
    )


def _contents(results: Results) -> str:
    lines = ["| section | question | seconds | CPU seconds |", "|---|---|---|---|"]
    for ran in results.ran:
        its, times = ran.section, f"{ran.seconds:.0f} | {ran.cpu_seconds:.0f}"
        lines.append(f"| [{its.title}](#{_anchor(its.title)}) | {its.question} | {times} |")
    return "\n".join(lines)


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.strip().replace(" ", "-")


def _section(ran: Ran) -> Iterator[str]:
    its = ran.section
    yield f"## {its.title}"
    more = f" Everything: `{its.full}`." if its.full else ""
    more += f" Explained in [{its.page}](benchmarks/{its.page}.md)." if its.page else ""
    yield f"{its.question} `{its.command}`.{more}"
    for number, table in enumerate(its.tables):
        parts = list(table_parts(table))
        if table.plot is not None:
            picture = f"![{table.plot.title}](images/{picture_name(its, number)})"
            parts.insert(bool(table.title), picture)
        yield from parts
    yield from its.notes


def picture_name(section: Section, number: int) -> str:
    """Return the file of a table's picture; the first one has the section's name alone."""
    return f"bench_{section.name}{f'_{number + 1}' if number else ''}.png"


def draw(table: Table, path: Path) -> None:
    """Draw one column of a table as horizontal bars, grouped by case."""
    assert table.plot is not None
    column = next(column for column in table.columns if column.key == table.plot.column)
    bars = list(_bars(table, column))
    width, height = 6.0, 0.9 + 0.34 * len(bars)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    values = [value for _, value, _ in bars if value is not None]
    floor = min((value for value in values if value > 0), default=1) / 3 if table.plot.log else 0
    for place, (case, value, colour) in enumerate(bars):
        if value is not None:
            shown = max(value, floor)
            axes.barh(
                place, shown - floor if table.plot.log else shown, 0.75, left=floor, color=colour
            )
            axes.text(shown, place, f" {format_value(column, value)}", va="center", fontsize=9)
        else:
            left = axes.get_yaxis_transform()  # from the axis on, in the line of its own
            axes.text(0, place, case, transform=left, va="center", fontsize=9, weight="bold")
    names = [label if value is not None else "" for label, value, _ in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    if table.plot.log:
        axes.set_xscale("log")
        axes.set_xlim(floor, max(values) * 12)
    else:
        axes.set_xlim(0, max(values) * 1.25)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.spines["bottom"].set_visible(False)
    scale = " (logarithmic)" if table.plot.log else ""
    figure.suptitle(table.plot.title + scale, fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _bars(table: Table, column: Column) -> Iterator[tuple[str, float | None, str]]:
    """Yield a heading for each case, without a value, then its rows."""
    for case, rows in table.groups():
        known = [row for row in rows if isinstance(row.values.get(column.key), int | float)]
        if not known:
            continue
        if case:
            yield case, None, GREY
        for row in known:
            yield _name(table, row), _number(row.values[column.key]), COLOURS[row.side]


def _name(table: Table, row: Row) -> str:
    return textwrap.fill(str(row.values[table.who]).replace("`", ""), 34)


def _number(value: Any) -> float:
    return abs(float(value))


def write(results: Results, folder: Path) -> None:
    """Write results, page and pictures; pictures of an earlier run are removed."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).parent.mkdir(exist_ok=True)
    (folder / RESULTS).write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for old in images.glob("bench_*.png"):
        old.unlink()
    for ran in results.ran:
        for number, table in enumerate(ran.section.tables):
            if table.plot is not None:
                draw(table, images / picture_name(ran.section, number))
    (folder / "benchmarks.md").write_text(page(results), encoding="utf-8")


def read(folder: Path) -> Results:
    """Read a run's results."""
    return Results.model_validate_json((folder / RESULTS).read_text(encoding="utf-8"))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    write(read(folder), folder)


if __name__ == "__main__":
    main()
