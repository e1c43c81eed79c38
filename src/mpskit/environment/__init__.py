"""The PYTORCH_* variables of the MPS backend: parsed, explained, and set in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.lazy import resolver

if TYPE_CHECKING:
    from mpskit.environment.variables import configure_environment, current_environment

_PUBLIC = {
    "configure_environment": "mpskit.environment.variables",
    "current_environment": "mpskit.environment.variables",
}

__all__ = ["configure_environment", "current_environment"]

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _PUBLIC)
