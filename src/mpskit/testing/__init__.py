"""Tools for tests: assert_close, and the pytest plugin with fixtures and simulated Macs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.lazy import resolver

if TYPE_CHECKING:
    from mpskit.testing.comparison import Tolerance, assert_close, tolerance_for

__all__ = ["Tolerance", "assert_close", "tolerance_for"]

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, dict.fromkeys(__all__, "mpskit.testing.comparison"))
