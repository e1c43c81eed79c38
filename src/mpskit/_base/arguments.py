"""Checks of arguments that several public functions share."""

from __future__ import annotations

from typing import Any

from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_count"]


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raise unless ``value`` is an int of at least ``least``.

    Raises:
        ArgumentTypeError: it is no int.
        ArgumentError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} must be an int, got {value!r}", given=value)
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {value}", given=value)
