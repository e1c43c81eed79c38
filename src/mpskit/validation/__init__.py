"""Whether this machine does what mpskit says of it: each user's machine becomes evidence."""

from __future__ import annotations

from mpskit._base.lazy import resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpskit.validation.report import Finding, Outcome, Validation
    from mpskit.validation.run import validate

__all__ = ["Finding", "Outcome", "Validation", "validate"]

_HOMES = {
    "Finding": "mpskit.validation.report",
    "Outcome": "mpskit.validation.report",
    "Validation": "mpskit.validation.report",
    "validate": "mpskit.validation.run",
}

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _HOMES)
