"""The checks of a validation: each compares one part of what mpskit says with the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpskit.validation import coverage, memory, speed
from mpskit.validation.names import NAMES
from mpskit.validation.report import Finding

__all__ = ["CHECKS"]

# name -> what tries it on a device
CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = dict(
    zip(
        NAMES,
        (
            memory.working_set,
            memory.allocator,
            memory.out_of_memory,
            coverage.operators,
            coverage.dtypes,
            coverage.autocast_lists,
            coverage.issues,
            memory.estimates,
            speed.times,
            speed.loader,
        ),
        strict=True,
    )
)
