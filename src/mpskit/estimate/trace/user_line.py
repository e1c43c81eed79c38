"""Finds the line of the user's own code that an operator comes from."""

from __future__ import annotations

import itertools
import sys
from types import CodeType, FrameType

from mpskit._base.user_code import is_own, shown_place

__all__ = ["UNKNOWN", "CallerLines", "Line", "shown"]

# A code object and the instruction in it: what a frame tells without a search in its line table.
Line = tuple[CodeType, int]
# In the place of a line that was not looked for yet.
UNKNOWN: Line = ((lambda: None).__code__, 0)


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
            elif is_own(code.co_filename):
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
    return shown_place(code.co_filename, number)
