"""Plain text, in colour on a terminal if rich is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["MARKS", "printer"]

# A check's mark: its word, and its colour in rich.
MARKS = {
    "ok": ("ok  ", "green"),
    "note": ("note", "cyan"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
}


def printer() -> Callable[[str, str], None]:
    """Return ``show(mark, line)``: ``mark`` is a key of `MARKS`, or empty for plain text."""
    console = _console()

    def show(mark: str, line: str) -> None:
        word, colour = MARKS.get(mark, ("", ""))
        if console is None or not word:
            print(f"{word} {line}" if word else line)
        else:
            console.print(f"[{colour}]{word}[/{colour}]", end=" ")
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return show


def _console() -> Any:
    # A closed stdout (>&-) is None in Python.
    if os.environ.get("NO_COLOR") or sys.stdout is None or not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()
