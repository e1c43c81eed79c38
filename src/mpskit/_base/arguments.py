"""Checks of arguments that several public functions share."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from typing import Any

from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "check_callable",
    "check_count",
    "check_names",
    "check_seconds",
    "check_version",
    "shown",
    "wrong_type",
]


_MOST = 200


def shown(value: Any) -> str:
    """Return ``repr(value)`` for a message: never an error, and never longer than a paragraph.

    Python writes out no int of more than 4,300 digits, and another type's ``__repr__`` may raise.
    """
    if isinstance(value, int) and value.bit_length() > 4 * _MOST:
        return f"an int of {value.bit_length()} bits"
    try:
        text = repr(value[:_MOST] if isinstance(value, str | bytes) else value)
    except Exception:  # noqa: BLE001 - it describes a mistake, and must not become another
        return f"an object of {type(value).__name__}"
    return text if len(text) <= 2 * _MOST else f"{text[:_MOST]}..."


def wrong_type(name: str, wanted: str, value: Any) -> ArgumentTypeError:
    """Return the error for an argument of the wrong type: ``macos must be a str, got 15 (int)``."""
    kind = type(value).__name__
    return ArgumentTypeError(f"{name} must be {wanted}, got {shown(value)} ({kind})", given=value)


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raise unless ``value`` is an int of at least ``least``.

    Raises:
        ArgumentTypeError: it is not an int.
        ArgumentError: it is too small, or more than a 64-bit integer takes.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "an int", value)
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {shown(value)}", given=value)
    if value > sys.maxsize:
        raise ArgumentError(f"{name} is more than torch can count: {shown(value)}", given=value)


def check_version(version: Any) -> None:
    """Raise unless ``version`` is a str, or None for the installed torch.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if not isinstance(version, str | None):
        raise wrong_type("torch_version", "a str such as '2.13.0'", version)


def check_seconds(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number of seconds above 0.

    Raises:
        ArgumentTypeError: it is no number.
        ArgumentError: it is not above 0, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, "a number of seconds", value)
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{name} must be above 0 and finite, got {shown(value)}", given=value)


def check_callable(name: str, value: Any) -> None:
    """Raise where ``value`` is neither None nor can be called.

    Raises:
        ArgumentTypeError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise wrong_type(name, "a function", value)


def check_names(name: str, value: Any, known: Collection[str], *, what: str) -> tuple[str, ...]:
    """Return names of ``what``, each once, in the order in which they were given.

    Raises:
        ArgumentTypeError: it is no list, or one str.
        ArgumentError: one of them is not ``known``.
    """
    if not isinstance(value, list | tuple | set | frozenset):
        raise wrong_type(name, "a list of names", value)
    for one in value:
        if not isinstance(one, str) or one not in known:
            raise ArgumentError(f"no {what} {shown(one)}: one of {', '.join(known)}", given=one)
    return tuple(dict.fromkeys(value))
