"""What a benchmark hands to the run: a section of tables, and what in them was worse than a peer.

A script of this folder builds a :class:`Section` and passes the function that does so to
:func:`script`, which prints it as Markdown or writes it as JSON. ``run.py`` collects them.
"""

from __future__ import annotations

import argparse
import enum
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

__all__ = ["Column", "Plot", "Row", "Section", "Size", "Table", "format_value", "script"]

Value = str | int | float | None
Unit = Literal["text", "count", "seconds", "bytes", "percent", "ratio"]
# Two times that differ by less than this share are called equal: a run repeats no closer.
NOISE = 0.1


class Size(enum.StrEnum):
    """How much a script measures: only enough to see that it works, what a run has, everything."""

    TINY = "tiny"
    RUN = "run"
    FULL = "full"

    def of(self, tiny: Any, run: Any, full: Any) -> Any:
        """Return the one that is for this size."""
        return {Size.TINY: tiny, Size.RUN: run, Size.FULL: full}[self]


class Model(BaseModel):
    """A value of the JSON; what is computed from the others is not read back."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Column(Model):
    """A column of a table.

    Attributes:
        key: its key in a row's values.
        heading: its heading.
        unit: how its values are shown; percentages are fractions, seconds and bytes are plain.
        better: which of two values is better; None if the column does not decide.
        margin: the share by which two values may differ and still be called equal.
    """

    key: str
    heading: str
    unit: Unit = "text"
    better: Literal["low", "high", "near zero"] | None = None
    margin: float = 0.0


class Row(Model):
    """A row; ``side`` says whose it is, None if it is nobody's, such as a bound."""

    values: dict[str, Value]
    side: Literal["ours", "peer"] | None = None


class Plot(Model):
    """A picture of one column as bars, one for each row that has a value."""

    column: str
    title: str
    log: bool = False


class Table(Model):
    """A table whose rows stand side by side.

    Attributes:
        title: its heading; empty for a section's only table.
        columns: what is shown.
        rows: in the order shown.
        case: the column that says what was done; only rows of one case are compared. None compares
            all rows.
        who: the column that says who did it.
        pivot: the column whose values are shown as one line a case and one column for each
            contestant; None shows each row as a line.
        plot: the picture, if there is one.
        note: a paragraph below it.
    """

    title: str = ""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    case: str | None = None
    who: str = "who"
    pivot: str | None = None
    plot: Plot | None = None
    note: str = ""

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield each case and its rows."""
        cases: dict[str, list[Row]] = {}
        for row in self.rows:
            cases.setdefault(str(row.values[self.case]) if self.case else "", []).append(row)
        yield from cases.items()

    @property
    def has_peers(self) -> bool:
        """Whether anything is compared."""
        judged = any(column.better for column in self.columns)
        return judged and {row.side for row in self.rows} >= {"ours", "peer"}

    @computed_field
    def worse(self) -> list[str]:
        """Say of each case and column in which ours was worse than the best peer."""
        return [
            text
            for case, rows in self.groups()
            for column in self.columns
            if column.better
            for ours in rows
            if ours.side == "ours"
            for text in self._beaten(case, column, ours, [r for r in rows if r.side == "peer"])
        ]

    def _beaten(self, case: str, column: Column, ours: Row, peers: list[Row]) -> Iterator[str]:
        ranked = sorted(
            (row for row in peers if row.values.get(column.key) is not None),
            key=lambda row: _badness(column, row.values[column.key]),
        )
        value = ours.values.get(column.key)
        beaten_by = [row for row in ranked if _is_worse(column, value, row.values[column.key])]
        if not beaten_by:
            return
        best = beaten_by[0]
        told = "no figure" if value is None else format_value(column, value)
        yield (
            f"{case + ': ' if case else ''}{ours.values[self.who]}, {column.heading}: {told} "
            f"against {format_value(column, best.values[column.key])} of {best.values[self.who]}"
            + (f" (and {len(beaten_by) - 1} more)" if len(beaten_by) > 1 else "")
        )


class Section(Model):
    """What one benchmark found.

    Attributes:
        name: its short name, as ``run.py --only`` takes it.
        title: the heading.
        question: what it answers, in a sentence or two.
        command: what runs it alone, from the repository's root.
        full: what measures everything where the run takes a part of it; empty where it does not.
        page: the page beside benchmarks.md that explains it, without ``.md``; empty for none.
        tables: the figures.
        notes: paragraphs below the tables: how it was measured and what it cannot show.
    """

    name: str
    title: str
    question: str
    command: str
    full: str = ""
    page: str = ""
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = Field(default=())


def _badness(column: Column, value: Any) -> float:
    return {"low": value, "high": -value, "near zero": abs(value)}[column.better or "low"]


def _is_worse(column: Column, ours: Value, theirs: Value) -> bool:
    """Whether ours is worse by more than the margin and looks it; no figure is worse than one."""
    if ours is None:
        return True
    if format_value(column, ours).lstrip("+-") == format_value(column, theirs).lstrip("+-"):
        return False
    return _badness(column, ours) > _badness(column, theirs) + column.margin * abs(theirs)  # type: ignore[arg-type]


def format_value(column: Column, value: Value) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    match column.unit:
        case "seconds":
            return _seconds(value)
        case "bytes":
            return f"{value / 2**20:,.0f} MiB" if value >= 2**20 or not value else f"{value:,} B"
        case "percent":
            return f"{value:+.3%}" if column.better == "near zero" else f"{value * 100:.3g}%"
        case "ratio":
            return f"{value:.3g}"
        case _:
            return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _seconds(value: float) -> str:
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 else f"{value:.0f} s"
    return f"{value * 1e9:.3g} ns"


def tables_markdown(section: Section) -> str:
    """Return the tables of a section, each with what was worse in it."""
    return "\n\n".join(itertools.chain.from_iterable(map(table_parts, section.tables)))


def table_parts(table: Table) -> Iterator[str]:
    """Yield a table's heading, itself, its note and what was worse than a peer in it."""
    if table.title:
        yield f"### {table.title}"
    yield _lines(*_pivoted(table)) if table.pivot else _lines(*_plain(table))
    if table.note:
        yield table.note
    worse: Any = table.worse
    if not table.has_peers:
        yield "*Worse than a peer*: there is no peer in this table."
    elif not worse:
        yield "*Worse than a peer*: nothing."
    else:
        yield "*Worse than a peer*:\n\n" + "\n".join(f"- {line}" for line in worse)


def _plain(table: Table) -> tuple[list[str], list[list[str]]]:
    cells = [[format_value(c, row.values.get(c.key)) for c in table.columns] for row in table.rows]
    return [column.heading for column in table.columns], cells


def _pivoted(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return one line a case and one column a contestant."""
    column = next(column for column in table.columns if column.key == table.pivot)
    names = list(dict.fromkeys(str(row.values[table.who]) for row in table.rows))
    case = next(c.heading for c in table.columns if c.key == table.case)
    cells = []
    for name, rows in table.groups():
        found = {str(row.values[table.who]): row.values.get(column.key) for row in rows}
        cells.append([name, *(format_value(column, found.get(who)) for who in names)])
    return [f"{case} ({column.heading})", *names], cells


def _lines(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def median(values: Sequence[float]) -> float:
    """Return the median of some times."""
    return float(statistics.median(values))


def script(
    section: Callable[..., Section],
    parser: argparse.ArgumentParser | None = None,
    instead: Callable[[argparse.Namespace], bool] | None = None,
) -> None:
    """Run a benchmark's section as its command line asks, and print or write it.

    ``section`` is given the size, and by name each option that ``parser`` has of its own.
    ``instead`` does what else the options ask for; the section is not measured if it returns True.
    """
    parser = parser or argparse.ArgumentParser(
        description=(sys.modules["__main__"].__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--size", type=Size, choices=list(Size), default=Size.RUN, help="how much (default: run)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON, print nothing")
    given = parser.parse_args()
    if instead is not None and instead(given):
        return
    options = vars(given)
    file = options.pop("json")
    found = section(options.pop("size"), **options)
    if file:
        file.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return
    print(tables_markdown(found))
