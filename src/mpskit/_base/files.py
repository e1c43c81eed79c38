"""Small files that several processes share: read within bounds, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

__all__ = ["read_small", "write_whole"]

_MOST = 1 << 16


def read_small(path: Path) -> str | None:
    """Return a regular file's text; None if there is none, or it is no text of up to 64 KiB.

    What lies at its place may be anything: opening a FIFO would wait for a writer, and a device
    need not end.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            found = file.read(_MOST + 1)
        return found.decode("utf-8") if len(found) <= _MOST else None
    except (OSError, ValueError):
        return None


def write_whole(path: Path, text: str) -> bool:
    """Write a file by renaming, so that two processes at once leave a whole one.

    Returns:
        Whether it was written. Nothing is left behind if not, on a full disk too.
    """
    made: list[str] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        made.append(name)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        Path(name).replace(path)
        made.clear()
    except (OSError, ValueError):
        return False
    finally:
        for name in made:
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108 - it is a str
    return True
