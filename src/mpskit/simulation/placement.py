"""Where an operator's arguments lie: on the simulated device, on the CPU, or on both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from mpskit.simulation.tags import Tags, address_of

__all__ = ["BOTH", "ON_CPU", "ON_MAC", "Scan", "scanner"]

ON_MAC = 1
ON_CPU = 2
BOTH = ON_MAC | ON_CPU

Scan = Callable[[Iterable[Any]], int]


def scanner(tags: Tags) -> Scan:
    """Return a function that says where the tensors among some values lie, as a bit set.

    CPU tensors without dimensions do not count: they may go with any device. This runs for every
    operator, so it reads the table of tags directly and looks into lists only where it meets one.
    """
    live, has, tensor_class = tags.live, tags.has, torch.Tensor
    address, dimensions = address_of, torch.Tensor.dim

    def scan(values: Iterable[Any]) -> int:
        found = 0
        for value in values:
            if isinstance(value, tensor_class):
                try:
                    tagged = address(value) in live
                except NotImplementedError:
                    tagged = has(value)
                if tagged:
                    found |= ON_MAC
                elif dimensions(value):
                    found |= ON_CPU
            elif isinstance(value, (list, tuple)):
                found |= scan(value)
        return found

    return scan
