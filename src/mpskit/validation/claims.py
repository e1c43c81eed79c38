"""How a claim is put beside what was found."""

from __future__ import annotations

from typing import Any

from mpskit._base.sizes import format_bytes
from mpskit.validation.report import Finding, Outcome

__all__ = ["compared", "near", "not_tried"]


def compared(check: str, claim: str, said: Any, found: Any) -> Finding:
    """Return whether two values are equal."""
    outcome = Outcome.HELD if said == found else Outcome.DID_NOT_HOLD
    return Finding(check=check, claim=claim, outcome=outcome, said=str(said), found=str(found))


def near(check: str, claim: str, said: int, found: int, *, within: float) -> Finding:
    """Return whether two sizes in bytes are equal up to a share of the one that was found."""
    off = abs(said - found) / max(found, 1)
    outcome = Outcome.HELD if off <= within else Outcome.DID_NOT_HOLD
    sizes = (f"{format_bytes(said)} ({said})", f"{format_bytes(found)} ({found})")
    return Finding(check=check, claim=claim, outcome=outcome, said=sizes[0], found=sizes[1])


def not_tried(check: str, claim: str, why: str) -> Finding:
    """Return that a claim could not be tried, and why."""
    return Finding(check=check, claim=claim, outcome=Outcome.NOT_TRIED, found=why)
