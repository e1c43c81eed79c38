"""``known_issues``: the known bugs that apply to a machine and, if one is given, to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import check_version
from mpskit.backends import versions
from mpskit.correctness.issue_table import KnownIssue, Severity, issues_for
from mpskit.errors import ArgumentError
from mpskit.host import detect_host
from mpskit.host.named import MachineLike, given_host

if TYPE_CHECKING:
    from mpskit.correctness.operators import OpUse

__all__ = ["KnownIssue", "Severity", "known_issues"]


def known_issues(
    machine: MachineLike | None = None,
    torch_version: str | None = None,
    *,
    host: MachineLike | None = None,
    model: Any = None,
    batch: Any = None,
) -> tuple[KnownIssue, ...]:
    """Return the known bugs of the MPS backend that apply, the most serious first.

    Only Macs have any. A machine whose macOS or chip is unknown gets all bugs that cannot be ruled
    out. Without a model this imports no torch. With one, a step is traced on tensors without
    memory, and only bugs of operators that it calls, with its dtypes and shapes, are returned: a
    training step if the model is in training mode, else a forward pass without gradients.

    Args:
        machine: another machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`; None is this one.
        torch_version: such as ``"2.13.0"``; None for the installed one.
        host: the older name of ``machine``.
        model: as ``estimate_training_memory`` takes it: a module, a class, or a callable.
        batch: tensors or ``TensorSpec``, nested; needed with a model.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        UnknownMachineError: no machine has that name.
        ArgumentError: a model without a batch, or a batch without a model.
        EstimateError: the step cannot be traced; the message names operator and module.
        UnsupportedTorchError: the installed torch is too old to trace a model.
    """
    told = given_host(machine, host)
    check_version(torch_version)
    if (model is None) != (batch is None):
        given = "a model without a batch" if batch is None else "a batch without a model"
        raise ArgumentError(f"give model= and batch= together: got {given}", given=model)
    where = detect_host() if told is None else told
    torch = torch_version or versions.torch_version()
    uses = None if model is None else _operators_of(model, batch)
    return () if torch is None else issues_for(where, torch, uses)


def _operators_of(model: Any, batch: Any) -> frozenset[OpUse]:
    versions.require("estimate")
    from mpskit.correctness.traced_operators import operators_of

    return operators_of(model, batch)
