"""Which code is the user's own: not installed, not of the standard library, with a file."""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path
from types import FrameType

__all__ = ["is_own", "own_place", "shown_place"]

_PACKAGES = frozenset({"site-packages", "dist-packages"})
_MPSKIT = Path(__file__).parents[1]
_STDLIB = (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platstdlib")))


@functools.cache
def is_own(filename: str) -> bool:
    """Return whether a file is the user's own code."""
    path = Path(filename)
    if filename.startswith("<") or not _PACKAGES.isdisjoint(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (_MPSKIT, *_STDLIB, *_torch()))


def _torch() -> tuple[Path, ...]:
    """Return torch's folder: a build from source lies outside of the installed packages."""
    file = getattr(sys.modules.get("torch"), "__file__", None)
    return () if file is None else (Path(file).parent,)


def own_place(frame: FrameType | None) -> tuple[str, int] | None:
    """Return file and line of the innermost frame that is the user's own, from ``frame`` out."""
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def shown_place(filename: str, line: int) -> str:
    """Return ``file:line``; a file below the current folder is named from there."""
    path = Path(filename)
    try:
        path = path.relative_to(Path.cwd())
    except (OSError, ValueError):  # no current folder any more, or another one
        pass
    return f"{path}:{line}"
