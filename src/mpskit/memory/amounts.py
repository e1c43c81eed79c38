"""Parses an amount of memory: bytes, a size, a percentage or a fraction."""

from __future__ import annotations

import re
from typing import TypeAlias

from mpskit._base.arguments import shown
from mpskit._base.sizes import meant_otherwise, parse_bytes
from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["Amount", "amount_bytes", "share_of"]

Amount: TypeAlias = int | float | str

_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", re.ASCII)


def amount_bytes(amount: Amount, whole: int, name: str) -> int:
    """Return the bytes of ``amount``.

    Args:
        amount: bytes (``int``), a size (``"2GiB"``), a percentage (``"10%"``) or a fraction
            (``float``) of ``whole``.
        whole: what a percentage or a fraction is taken of, in bytes.
        name: the argument's name, for the message.

    Raises:
        ArgumentTypeError: it is none of these types.
        ArgumentError: it is negative, not a number, a share above the whole, or so few bytes
            without a unit (``80``, ``"80"``) that a share or GiB must be meant.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | float | str):
        raise ArgumentTypeError(
            f"{name} must be bytes, a size like '2GiB', '10%' or a fraction, not {shown(amount)}",
            given=amount,
        )
    share = share_of(amount)
    # No memory is beyond 2**63 bytes, and a float holds no integer that is much longer.
    fine = 0 <= amount <= 2**63 if isinstance(amount, int) else share is None or 0 <= share <= 1
    if not fine:
        raise ArgumentError(
            f"{name}={shown(amount)} is not an amount: give bytes from 0, '2GiB', '10%' or 0.0 to "
            "1.0",
            given=amount,
        )
    if share is not None:
        return int(share * whole)
    meant = None if isinstance(amount, float) else meant_otherwise(amount)
    if meant is not None:
        raise ArgumentError(
            f"{name}={shown(amount)} is in bytes: did you mean {meant}?", given=amount
        )
    return parse_bytes(amount) if isinstance(amount, str) else int(amount)


def share_of(amount: Amount) -> float | None:
    """Return a fraction or a percentage as a fraction (``"80%"`` is 0.8); None for a size."""
    if isinstance(amount, float):
        return amount
    match = _PERCENT.fullmatch(amount) if isinstance(amount, str) else None
    return float(match[1]) / 100 if match else None
