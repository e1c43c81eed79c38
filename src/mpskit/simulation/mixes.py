"""Which arguments of which operators may stay on the CPU while the others are on MPS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._ops import OpOverload

__all__ = ["allowed"]


def allowed(op: OpOverload, argument: str | int) -> bool:
    """Return whether that argument may be a CPU tensor among mps tensors.

    Zero-dimensional CPU tensors are the caller's to let pass: they are legal in TensorIterator
    operators and this table speaks of the others.

    Args:
        op: the operator as dispatched.
        argument: the argument's name in the schema, or its position.
    """
    table = _ALLOWED.get(op._schema.name)
    if table is None:
        return False
    name = op._schema.arguments[argument].name if isinstance(argument, int) else argument
    return not table or name in table


# operator -> argument names; an empty set means any argument
_ALLOWED: dict[str, frozenset[str]] = {
    "aten::copy_": frozenset(),
    "aten::_copy_from": frozenset(),
    "aten::index.Tensor": frozenset({"indices"}),
}
