"""Plain text, wrapped to the terminal, in colour and tables there if rich is installed."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from mpskit._base.arguments import shown
from mpskit.errors import ArgumentError, MpskitWarning

__all__ = [
    "MARKS",
    "check_folder",
    "columns",
    "completing",
    "known_machines",
    "machines_and_cards",
    "print_rows",
    "print_wrapped",
    "printer",
    "progress",
    "told_warnings",
    "wrapped",
]

# A check's mark: its word, and its colour in rich.
MARKS = {
    "ok": ("ok  ", "green"),
    "note": ("note", "cyan"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
}
_INDENT = 5  # a mark and a space


def printer() -> Callable[[str, str], None]:
    """Return ``show(mark, line)``: ``mark`` is a key of `MARKS`, or empty for plain text."""
    console = _console()

    def show(mark: str, line: str) -> None:
        word, colour = MARKS.get(mark, ("", ""))
        if not word:
            print_wrapped(line)
            return
        text = wrapped(f"{word} {line}", width=columns(sys.stdout), extra=_INDENT)
        if console is None:
            print(text)
        else:
            console.print(f"[{colour}]{word}[/{colour}]", end="")
            console.print(text[len(word) :], markup=False, highlight=False, soft_wrap=True)

    return show


def print_wrapped(text: str, *, error: bool = False) -> None:
    """Print a text, wrapped to the terminal; a pipe or a file gets its lines as they are."""
    stream = sys.stderr if error else sys.stdout
    print(wrapped(text, width=columns(stream)), file=stream)


@contextlib.contextmanager
def told_warnings(command: str) -> Iterator[None]:
    """Print mpskit's own warnings in one sentence each, without this file's path and source."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", MpskitWarning)
        yield
    for warning in told:
        if issubclass(warning.category, MpskitWarning):
            print_wrapped(f"mpskit {command}: warning: {warning.message}", error=True)
        else:
            warnings.showwarning(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def wrapped(text: str, *, width: int | None, extra: int = 2) -> str:
    """Return a text with lines of ``width``; what is wrapped is indented by ``extra`` more.

    No word is broken, so that paths and addresses can be copied.
    """
    if width is None:
        return text
    return "\n".join(_wrapped_line(line, width, extra) for line in text.splitlines())


def _wrapped_line(line: str, width: int, extra: int) -> str:
    indent = len(line) - len(line.lstrip()) + extra
    if len(line) <= width or indent >= width // 2:
        return line
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: rich's on a terminal that has it, else columns of text.

    Where the terminal is too narrow for it, columns of one value become a line below the table.
    """
    same: list[tuple[str, str]] = []
    if (width := columns(sys.stdout)) is not None and _table_width(titles, rows) > width:
        titles, rows, same = _without_constants(titles, rows)
    _print_table(titles, rows)
    if same:
        print_wrapped("each row: " + ", ".join(f"{title} {value}" for title, value in same))


def _table_width(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    lines = [titles, *([max(cell.split("\n"), key=len) for cell in row] for row in rows)]
    return sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) - 2


def _without_constants(
    titles: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]], list[tuple[str, str]]]:
    """Split a table of several rows into what varies and the (title, value) of what does not."""
    varies = [len({row[i] for row in rows}) > 1 or len(rows) == 1 for i in range(len(titles))]
    same = [(titles[i], rows[0][i]) for i, kept in enumerate(varies) if not kept and rows[0][i]]
    cells = [[row[i] for i, kept in enumerate(varies) if kept] for row in rows]
    return [title for title, kept in zip(titles, varies, strict=True) if kept], cells, same


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console = _console()
    if console is not None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for index, title in enumerate(titles):
            # The first names the row, to be copied: it is not broken.
            table.add_column(title, overflow="fold", no_wrap=index == 0)
        for row in rows:
            table.add_row(*row)
        console.print(table, highlight=False)
        return
    flat = [[cell.replace("\n", ", ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [titles, *flat]) for i in range(len(titles))]
    for row in flat if columns(sys.stdout) is None else [titles, *flat]:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print_wrapped("  ".join(cells).rstrip())


def completing(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Let a shell complete an argument (with argcomplete) from names that are read only then."""
    vars(action)["completer"] = lambda **_: list(names())


def known_machines() -> Iterable[str]:
    """Return the names of the machine profiles."""
    from mpskit.host.machines import machine_names

    return machine_names()


def machines_and_cards() -> Iterable[str]:
    """Return what ``machine=`` may name: the profiles and the CUDA cards."""
    from mpskit.host.cuda_cards import cuda_cards

    return [*known_machines(), *(card.name for card in cuda_cards().values())]


def check_folder(path: str) -> None:
    """Raise where a file could not be written, before the work that fills it.

    Raises:
        ArgumentError: the folder is missing or cannot be written to, or ``path`` is a folder.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        raise ArgumentError(f"{shown(path)} is a folder: name a file in it", given=path)
    if not folder.is_dir():
        raise ArgumentError(
            f"{shown(path)} cannot be written: no folder {str(folder)!r}", given=path
        )
    if not os.access(folder, os.W_OK):
        raise ArgumentError(
            f"{shown(path)} cannot be written: {str(folder)!r} is not yours to write to", given=path
        )


def columns(stream: TextIO | None) -> int | None:
    """Return a terminal's columns; None for a pipe or a file, whose reader wants whole lines."""
    # A closed stdout (>&-) is None in Python.
    if stream is None or not stream.isatty():
        return None
    return max(shutil.get_terminal_size().columns, 20)


def _console() -> Any:
    if os.environ.get("NO_COLOR") or sys.stdout is None or not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()


def progress(text: str) -> None:
    """Show on a terminal what takes time; the next call overwrites the line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
