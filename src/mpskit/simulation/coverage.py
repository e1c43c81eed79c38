"""Whether MPS has an operator, by the installed torch's yaml and one table of corrections."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from mpskit.simulation import messages, yaml_index

if TYPE_CHECKING:
    from torch._ops import OpOverload

__all__ = ["Coverage", "Status"]


class Status(enum.Enum):
    """How an operator runs on MPS."""

    NATIVE = "native"
    COMPOSITE = "composite"
    STANDIN = "standin"
    ALWAYS_CPU = "always_cpu"
    MISSING = "missing"


class Coverage:
    """The operators of one torch version on one macOS.

    Args:
        torch_version: the torch whose yaml is read; the installed one.
        macos: the simulated machine's macOS, as ``"15.6"``.
        fallback: whether PYTORCH_ENABLE_MPS_FALLBACK was on at entry.
    """

    def __init__(self, torch_version: str, macos: str, *, fallback: bool = False) -> None:
        self.torch_version = torch_version
        self.macos = macos
        self.fallback = fallback
        self._status: dict[OpOverload, Status] = {}

    def status(self, op: OpOverload) -> Status:
        """Return how the operator runs on MPS (cached)."""
        found = self._status.get(op)
        if found is None:
            found = self._status[op] = self._look_up(op)
        return found

    def _look_up(self, op: OpOverload) -> Status:
        kind = yaml_index.installed_index().get(
            op._schema.name.removeprefix("aten::")
            + (f".{op._schema.overload_name}" if op._schema.overload_name else "")
        )
        if kind is yaml_index.Kind.NATIVE:
            return Status.NATIVE
        if kind is yaml_index.Kind.MISSING:
            return Status.MISSING
        return Status.COMPOSITE

    def check(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise what MPS raises for these arguments of an operator that it does have."""

    def missing_error(self, op: OpOverload) -> NotImplementedError:
        """Return torch's error for an operator that MPS does not have."""
        return NotImplementedError(
            messages.missing_operator(_full_name(op), self.torch_version, _commit())
        )

    def fallback_warning(self, op: OpOverload) -> str:
        """Return the text of the warning for the first operator that falls back to the CPU."""
        return messages.fallback(_full_name(op))


def _full_name(op: OpOverload) -> str:
    """Return the name as torch prints it: ``aten::kthvalue.values``, ``aten::mode``."""
    schema = op._schema
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name


def _commit() -> str:
    import torch

    return str(torch.version.git_version)
