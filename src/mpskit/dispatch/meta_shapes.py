"""The outputs of an operator without running it, from torch's meta kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._prims_common as _prims
from torch.utils import _device
from torch.utils._pytree import tree_flatten, tree_unflatten

from mpskit.dispatch.intercept import OutsideThread
from mpskit.dispatch.nested import tensors_in

__all__ = [
    "Output",
    "Plan",
    "SparseResult",
    "Unplannable",
    "check_dtypes",
    "infer",
    "settings",
    "signature",
    "unflatten",
]


class Unplannable(Exception):  # noqa: N818 - a private signal, not an error for the user
    """The meta kernel cannot tell what the operator returns."""


class SparseResult(Unplannable):
    """The operator returns a tensor that is not strided."""


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
    """Return a hashable key of an argument: all that can change the result's shape.

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


_core: Any = torch._C


def settings() -> tuple[Any, ...]:
    """Return the global settings on which an operator's result may depend.

    Flushing denormals is not one: it changes values, and a plan has none.
    """
    return (
        torch.get_default_dtype(),
        _device.CURRENT_DEVICE,
        torch.is_grad_enabled(),
        _core._is_any_autocast_enabled(),
        _core._get_deterministic_algorithms(),
    )


def infer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Ask the operator's meta kernel what it returns.

    Raises:
        Unplannable: it has none, or it needs values.
    """
    metas: dict[int, torch.Tensor] = {}
    args = _on_meta(args, metas)
    kwargs = {name: _on_meta(value, metas) for name, value in kwargs.items()}
    if isinstance(kwargs.get("device"), torch.device):
        kwargs = {**kwargs, "device": torch.device("meta")}
    kernel = _MENDED.get(func._schema.name, func)
    return _plan(_apart(kernel, args, kwargs), list(metas.values()))


def _grouped_mm(
    one: torch.Tensor,
    other: torch.Tensor,
    offs: Any = None,
    bias: Any = None,
    out_dtype: Any = None,
) -> torch.Tensor:
    """``_grouped_mm``: its meta kernel only takes bfloat16, its kernels every floating dtype."""
    if one.dtype is torch.bfloat16 and other.dtype is torch.bfloat16:
        grouped: Any = torch.ops.aten._grouped_mm.default
        result: torch.Tensor = grouped(one, other, offs, bias, out_dtype)
        return result
    rows = one.shape[:-1] if one.dim() == 2 or other.dim() == 3 else one.shape[1:-1]
    groups = offs.shape if one.dim() == other.dim() == 2 else ()
    return one.new_empty((*groups, *rows, other.shape[-1]), dtype=out_dtype or one.dtype)


def _convolution(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    """``convolution``: its meta kernel forgets channels-last, which every kernel of the CPU keeps.

    Source: ``determine_backend_memory_format`` in aten/src/ATen/native/Convolution.cpp.
    """
    result: torch.Tensor = torch.ops.aten.convolution.default(x, weight, *rest)
    for layout in map(_prims.suggest_memory_format, (x, weight)):
        if layout is not torch.contiguous_format and x.dim() > 3:
            return torch.empty_like(result, memory_format=layout)
    return result


# Meta kernels that differ from the real ones -> their replacements.
_MENDED: dict[str, Callable[..., Any]] = {
    "aten::_grouped_mm": _grouped_mm,
    "aten::convolution": _convolution,
}


# Products whose kernels require one dtype; their meta kernels do not check it.
_OF_ONE_DTYPE = frozenset(
    f"aten::{name}"
    for name in ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr")
) | {"aten::convolution"}


def check_dtypes(func: Any, args: tuple[Any, ...]) -> None:
    """Raise the kernel's error for operands of different dtypes.

    The kernel itself raises it, on operands of one element each.

    Raises:
        RuntimeError: torch's own text.
    """
    dtypes = {tensor.dtype for tensor in tensors_in(args)}
    if len(dtypes) < 2 or func._schema.name not in _OF_ONE_DTYPE:
        return
    small = [
        torch.zeros([1] * value.dim(), dtype=value.dtype, device="cpu")
        if isinstance(value, torch.Tensor)
        else value
        for value in args
    ]
    if func._schema.name == "aten::convolution":
        count = args[0].dim() - 2
        small[3:] = [[1] * count, [0] * count, [1] * count, args[6], [0] * count, 1]
    func(*small)


def _apart(func: Any, args: Any, kwargs: Any) -> Any:
    """Call a meta kernel in a thread of its own.

    The first call of many imports half of torch and leaves exceptions in cycles behind. Their
    tracebacks hold every frame below, and with it the step's tensors; here there is none below.
    """
    outcome: list[Any] = []
    grad = torch.is_grad_enabled()

    def call() -> None:
        try:
            with torch.set_grad_enabled(grad):
                outcome.append(func(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller
            outcome.append(error.with_traceback(None))

    thread = OutsideThread(target=call, name="mpskit meta kernel")
    thread.start()
    thread.join()
    result = outcome.pop()
    if isinstance(result, NotImplementedError):
        raise Unplannable(str(result))
    if isinstance(result, Exception):
        raise result
    return result


def _on_meta(value: Any, metas: dict[int, torch.Tensor]) -> Any:
    """Return an argument with meta tensors of the same layout, the same one for the same tensor.

    Not by torch's pytree: its walk leaves a cycle behind that holds every leaf, and so would keep
    the step's tensors alive until a garbage collection.
    """
    if isinstance(value, torch.Tensor):
        found = metas.get(id(value))
        if found is None:
            found = metas[id(value)] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
        return found
    if isinstance(value, list | tuple):
        return type(value)([_on_meta(item, metas) for item in value])
    return value


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
        raise SparseResult("a sparse result")
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
