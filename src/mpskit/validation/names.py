"""The names of the checks, which the command line lists without importing torch."""

from __future__ import annotations

__all__ = ["NAMES"]

# In the order in which they run.
NAMES = (
    "working-set",
    "allocator",
    "out-of-memory",
    "operators",
    "dtypes",
    "autocast",
    "known-issues",
    "estimates",
    "times",
    "loader",
)
