"""Checks of arguments that several public functions share."""

from __future__ import annotations

from typing import Any

from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_count", "wrong_type"]


def wrong_type(name: str, wanted: str, value: Any) -> ArgumentTypeError:
    """Return the error for an argument of the wrong type: ``macos must be a str, got 15 (int)``."""
    kind = type(value).__name__
    return ArgumentTypeError(f"{name} must be {wanted}, got {value!r} ({kind})", given=value)


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raise unless ``value`` is an int of at least ``least``.

    Raises:
        ArgumentTypeError: it is not an int.
        ArgumentError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "an int", value)
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {value}", given=value)
