"""What is known of each operator, worked out once and kept by operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from mpskit.simulation import dtypes
from mpskit.simulation.coverage import Coverage, Status
from mpskit.simulation.mixes import allowed

__all__ = ["OpFacts", "Rules"]

_MOVES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten._copy_from.default,
}
_DTYPES = tuple(v for v in vars(torch).values() if isinstance(v, torch.dtype))

Gate = Callable[[tuple[Any, ...], dict[str, Any]], None]


@dataclasses.dataclass(slots=True, frozen=True)
class OpFacts:
    """Facts about one operator.

    Attributes:
        has_device: it takes a device argument.
        moves: it may read one device and write another.
        fresh: it may return a storage of its own.
        gate: raises what a Mac raises before it runs; None where nothing can be wrong.
    """

    has_device: bool
    moves: bool
    fresh: bool
    gate: Gate | None


class Rules:
    """Coverage, dtype and device rules of one torch version on one macOS."""

    def __init__(
        self, coverage: Coverage, torch_version: str, macos: str, *, fallback: bool
    ) -> None:
        self.coverage = coverage
        self.known: dict[Any, OpFacts] = {}
        self._torch_version = torch_version
        self._macos = macos
        self._fallback = fallback
        self.fallbacks: list[str] = []
        self.refused = frozenset(
            d for d in _DTYPES if self.refusal(d, creating=True) is not None
        )

    def refusal(self, dtype: torch.dtype, *, creating: bool) -> Exception | None:
        """Return the error of a dtype that MPS does not take, or None."""
        return dtypes.refusal(
            dtype, creating=creating, torch_version=self._torch_version, macos=self._macos
        )

    def facts(self, func: Any) -> OpFacts:
        """Work out the facts of an operator that was not seen before."""
        schema = func._schema
        facts = OpFacts(
            has_device=any(argument.name == "device" for argument in schema.arguments),
            moves=func in _MOVES,
            fresh=any(value.alias_info is None for value in schema.returns),
            gate=self._gate(func),
        )
        self.known[func] = facts
        return facts

    def check_mix(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise torch's error for tensors on two devices, unless this operator allows it."""

    def _gate(self, func: Any) -> Gate | None:
        if self.coverage.status(func) is Status.MISSING:
            raise self.coverage.missing_error(func)
        return None
