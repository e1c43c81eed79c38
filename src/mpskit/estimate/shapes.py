"""What an operator returns, without running it: torch's own meta kernels, asked once per shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

__all__ = ["Output", "Plan", "Unplannable", "infer", "signature", "unflatten"]


class Unplannable(Exception):  # noqa: N818 - a private signal, not an error for the user
    """The meta kernel cannot say what the operator returns."""


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that an operator returns.

    ``storage`` numbers the new storages of the call; a negative number ``-1 - i`` is the storage
    of the i-th tensor argument, so the result is another view of it.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    nbytes: int
    storage: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a call returns: leaves in order, and how they nest (None: one tensor)."""

    leaves: tuple[Any, ...]
    spec: Any
    numel: int
    dtypes: frozenset[torch.dtype]


def signature(value: Any, *, exact: bool) -> Any:
    """Return a hashable stand-in for an argument: all of it that can change the result's shape.

    Unless ``exact``, a float is reduced to its type: only factories look at more of it, and the
    optimizers' bias corrections change every step.
    """
    kind = type(value)
    if kind is list or kind is tuple:
        return tuple([signature(item, exact=exact) for item in value])
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    if kind is float and not exact:
        return float
    return (kind, value)


def infer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Ask the operator's meta kernel what it returns.

    Raises:
        Unplannable: it has none, or it needs values.
    """
    metas: dict[int, torch.Tensor] = {}
    order: list[torch.Tensor] = []

    def to_meta(tensor: torch.Tensor) -> torch.Tensor:
        found = metas.get(id(tensor))
        if found is None:
            found = metas[id(tensor)] = _meta_like(tensor)
            order.append(found)
        return found

    args, kwargs = tree_map_only(torch.Tensor, to_meta, (args, kwargs))
    if isinstance(kwargs.get("device"), torch.device):
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        result = func(*args, **kwargs)
    except NotImplementedError as error:
        raise Unplannable(str(error)) from error
    return _plan(result, order)


def _meta_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _plan(result: Any, arguments: list[torch.Tensor]) -> Plan:
    leaves, spec = tree_flatten(result)
    owners: dict[int, int] = {
        meta.untyped_storage()._cdata: -1 - index for index, meta in enumerate(arguments)
    }
    fresh = iter(range(len(leaves)))
    outputs = [_output(leaf, owners, fresh.__next__) for leaf in leaves]
    numel = max((leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)), default=0)
    single = isinstance(result, torch.Tensor)
    dtypes = frozenset(o.dtype for o in outputs if isinstance(o, Output))
    return Plan(tuple(outputs), None if single else spec, numel, dtypes)


def _output(leaf: Any, owners: dict[int, int], fresh: Callable[[], int]) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.layout is not torch.strided:
        raise Unplannable("a sparse result")
    storage = leaf.untyped_storage()
    owner = owners.get(storage._cdata)
    if owner is None:
        owner = owners[storage._cdata] = fresh()
    return Output(
        tuple(leaf.shape),
        tuple(leaf.stride()),
        int(leaf.storage_offset()),
        leaf.dtype,
        storage.nbytes(),
        owner,
    )


def unflatten(plan: Plan, leaves: list[Any]) -> Any:
    """Nest the leaves as the operator would have returned them."""
    return leaves[0] if plan.spec is None else tree_unflatten(leaves, plan.spec)
