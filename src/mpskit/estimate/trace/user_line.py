"""Finds the line of the user's own code that an operator comes from."""

from __future__ import annotations

import functools
import itertools
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType

import torch

__all__ = ["UNKNOWN", "CallerLines", "Line", "shown"]

# A code object and the instruction in it: what a frame tells without a search in its line table.
Line = tuple[CodeType, int]
# In the place of a line that was not looked for yet.
UNKNOWN: Line = ((lambda: None).__code__, 0)

_PACKAGES = frozenset({"site-packages", "dist-packages"})
_LIBRARIES = (
    Path(__file__).parents[2],
    Path(torch.__file__).parent,
    Path(sysconfig.get_path("stdlib")),
    Path(sysconfig.get_path("platstdlib")),
)


class CallerLines:
    """Searches the stack for the user's own code, each stretch of it once.

    Installed packages, torch, mpskit, the standard library and code without a file are not the
    user's own. A model from a package is called through many frames of it, but what lies outside
    of a module's call stays the same during the call.

    Attributes:
        call: the code that calls a module; it puts ``UNKNOWN`` on ``outside`` for as long.
        backward: the code that runs a backward pass; the search ends there.
        outside: the line outside of each module's call that is open, outermost first.

    Args:
        end: the code that runs the steps; the search ends there.
    """

    def __init__(self, end: CodeType) -> None:
        self.call = self.backward = self._end = end
        self.outside: list[Line | None] = []

    def innermost(self, skip: int = 0) -> Line | None:
        """Return where the innermost frame of the user's own code is, ``skip`` frames out."""
        frame: FrameType | None = sys._getframe(1 + skip)
        index = inside = len(self.outside)
        line: Line | None = None
        while frame is not None:
            code = frame.f_code
            if code is self._end or code is self.backward:
                break
            if code is self.call:
                index -= 1
                line = self.outside[index]
                if line is not UNKNOWN:
                    break
                line = None
            elif _is_own(code.co_filename):
                line = code, frame.f_lasti
                break
            frame = frame.f_back
        self.outside[index:inside] = [line] * (inside - index)
        return line


def shown(line: Line) -> str:
    """Return ``file:line``; a file below the current folder is named from there."""
    code, instruction = line
    positions = itertools.islice(code.co_positions(), instruction // 2, None)
    number = next(positions, (None,))[0] or code.co_firstlineno
    path = Path(code.co_filename)
    try:
        path = path.relative_to(Path.cwd())
    except (OSError, ValueError):  # no current folder any more, or another one
        pass
    return f"{path}:{number}"


@functools.cache
def _is_own(filename: str) -> bool:
    path = Path(filename)
    installed = filename.startswith("<") or not _PACKAGES.isdisjoint(path.parts)
    return not installed and not any(path.is_relative_to(folder) for folder in _LIBRARIES)
