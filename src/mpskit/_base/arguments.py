"""Checks of arguments that several public functions take."""

from __future__ import annotations

from typing import Any

from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_count", "check_host"]


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Raises:
        ArgumentTypeError: it is not a whole number.
        ArgumentError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} is a whole number, not {value!r}", given=value)
    if value < least:
        raise ArgumentError(f"{name} must be {least} or more, not {value}", given=value)


def check_host(host: Any) -> None:
    """Raise unless ``host`` is a ``Host`` or None.

    Raises:
        ArgumentTypeError: it is neither.
    """
    from mpskit.host import Host

    if host is not None and not isinstance(host, Host):
        raise ArgumentTypeError(
            f"a host is what detect_host() or Host.from_readings() returns, not {host!r}",
            given=host,
        )
