"""Runs the user's FILE.py: what it prints, how it fails and where it exits stay its own."""

from __future__ import annotations

import contextlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpskit._base.arguments import shown
from mpskit._base.user_code import is_own
from mpskit.backends.facts import torch_trouble
from mpskit.errors import ArgumentError, MpskitError

__all__ = ["run_file", "users_code"]


@contextlib.contextmanager
def users_code(path: str) -> Iterator[None]:
    """Run code of a file of the user's, whose prints go to stderr: stdout is for the report.

    Raises:
        ArgumentError: it failed, and its traceback is printed; or it ended the program, whose exit
            code would be taken for the command's answer.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (MpskitError, BrokenPipeError):
        raise
    except SystemExit as error:
        raise ArgumentError(
            f"{path} ended the program (sys.exit({error.code!r})): put what it does as a program "
            "under if __name__ == '__main__'",
            given=path,
        ) from error
    except Exception as error:
        if torch_trouble() is not None:
            raise
        _print_traceback(error)
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ArgumentError(f"{path} fails: {cause}", given=path) from error


def _print_traceback(error: Exception) -> None:
    """Print a traceback from the first line of the user's own on; the whole one without any."""
    first = error.__traceback__
    while first is not None and not is_own(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    if first is None and not isinstance(error, SyntaxError):
        first = error.__traceback__
    traceback.print_exception(type(error), error, first)


def run_file(path: str, *names: str | None) -> Mapping[str, Any]:
    """Run a file and return what it defines.

    Raises:
        ArgumentError: there is no such file, it fails, or a name is not in it.
    """
    if not Path(path).is_file():
        raise ArgumentError(f"{shown(path)} is not FILE.py:NAME with an existing file", given=path)
    sys.path.insert(0, str(Path(path).resolve().parent))
    with users_code(path):
        found = runpy.run_path(path)
    for name in names:
        if name is not None and name not in found:
            known = ", ".join(sorted(key for key in found if not key.startswith("_"))[:10])
            raise ArgumentError(f"{path} has no {shown(name)}; it has {known}", given=name)
    return found
