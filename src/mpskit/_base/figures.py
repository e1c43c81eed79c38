"""Pictures by matplotlib, which only those who want one install: a figure, and its file."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from mpskit.errors import ArgumentError, MissingExtraError

__all__ = ["new_figure", "save_figure", "unwritable"]


def new_figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    """Return a figure of that size in inches, and its axes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "a plot needs matplotlib: pip install 'mpskit[plot]'", given="plot"
        ) from error
    # Figure itself, not pyplot: no global state, no window, no backend to choose.
    figure = Figure(figsize=(width, height), **options)
    return figure, figure.subplots()


def save_figure(figure: Any, path: Path, **options: Any) -> Path:
    """Write a figure into a file and return its path; the suffix chooses the format, else PNG.

    Raises:
        ArgumentError: the file cannot be written, or its suffix names no format.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # matplotlib adds the suffix by itself, and the caller would not learn the file's name.
        path = path if path.suffix else path.with_name(f"{path.name}.png")
        figure.savefig(path, **options)
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    return path


def unwritable(path: Path, error: OSError | ValueError) -> ArgumentError:
    """Return the error of a file that cannot be written; a ValueError is of an impossible name."""
    reason = getattr(error, "strerror", None) or str(error)
    return ArgumentError(f"{path.name!r} cannot be written: {reason}", given=str(path))
