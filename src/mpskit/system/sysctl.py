"""Reads macOS kernel values by name in microseconds, without starting a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["read_sysctls"]


def read_sysctls(texts: Iterable[str] = (), numbers: Iterable[str] = ()) -> dict[str, str]:
    """Return the values of the names that this kernel knows, as text; none outside macOS.

    Args:
        texts: names whose values are strings, such as ``hw.model``.
        numbers: names whose values are integers, such as ``hw.memsize``.
    """
    import ctypes

    # Windows has no handle of the process itself, and Linux no such function.
    ask = getattr(ctypes.CDLL(None), "sysctlbyname", None) if os.name == "posix" else None
    if ask is None:
        return {}
    found = {name: _text(raw) for name in texts if (raw := _raw(ask, name)) is not None}
    raws = {name: _raw(ask, name) for name in numbers}
    return found | {n: str(int.from_bytes(raw, sys.byteorder)) for n, raw in raws.items() if raw}


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()


def _raw(ask: Any, name: str) -> bytes | None:
    """Return the raw value, asking the kernel first for its size and then for its bytes."""
    import ctypes

    size = ctypes.c_size_t(0)
    if ask(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    buffer = ctypes.create_string_buffer(size.value)
    failed = ask(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else buffer.raw[: size.value]
