"""Answers operators on data-less tensors by the shapes of their outputs; nothing is computed.

Small results whose inputs are all known are computed for real, so that masks, positions, step
counters and constants keep their values and the control flow that rests on them is the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import dataless_storage, is_dataless
from mpskit.dispatch.intercept import calls_operators
from mpskit.dispatch.meta_shapes import (
    Output,
    Plan,
    SparseResult,
    Unplannable,
    check_dtypes,
    infer,
    settings,
    signature,
    unflatten,
)
from mpskit.dispatch.mps_op_memory import OpMemory, Rule
from mpskit.dispatch.nested import tensors_in
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.op_schema import OpSchema, is_recorded
from mpskit.dispatch.random_state import draw
from mpskit.estimate.trace.finite_floats import CHECKS, number_everywhere
from mpskit.estimate.trace.storage_log import StorageLog
from mpskit.estimate.trace.unknown_values import CHOOSERS, Reads, spread

__all__ = ["Tracer"]

_OUTPUTS_ONLY = OpMemory()

_SCHEMAS: dict[Any, OpSchema] = {}
_PLANS: dict[Any, Plan] = {}
_PLANS_LIMIT = 20_000
_CPU = torch.device("cpu")
_HERE = frozenset({"cpu", "meta"})
_FLOAT64 = frozenset({torch.float64, torch.complex128})
_SPARSE = "sparse tensors are not estimated: use the dense form (Embedding(sparse=False))"
_NO_FLOAT64 = (
    "MPS has no float64 and torch raises TypeError there: convert to float32 first "
    "(model.float(), or the dtype= of what makes the tensor)"
)

_NO_KERNEL = (
    "the target has no kernel for it and torch raises NotImplementedError there. Compute it on the "
    "CPU in the real step (x.cpu(), or PYTORCH_ENABLE_MPS_FALLBACK=1), and leave it out of the "
    "estimate's (step= or train_step=; --step on the command line)"
)

# Kernels without a meta form run for real on the zeros behind the inputs, up to this size.
_SMALL_BYTES = 64 << 20

# Up to these sizes what is known is computed: enough for the masks and positions of a long
# sequence, and little beside the time of the trace.
_KNOWN_INTEGERS = 1 << 21
_KNOWN_FLOATS = 1 << 14


class Tracer:
    """Answers every operator and writes every new storage into the log.

    Args:
        log: what is written.
        rules: operator's name -> its memory, where the target takes more than its outputs.
        missing: operators that the target has no kernel for.
        supports_float64: whether the target has float64 and complex128 (MPS has not).
        scalars_on_device: whether ``torch.tensor(1.0)`` takes memory of the target. On a GPU it
            stays on the CPU, as the step counters of torch's optimizers do there.
    """

    def __init__(
        self,
        log: StorageLog,
        rules: Mapping[str, Rule] | None = None,
        *,
        missing: frozenset[str] = frozenset(),
        supports_float64: bool = True,
        scalars_on_device: bool = True,
    ) -> None:
        self.log = log
        self.where = log.where
        self.generator = torch.Generator().manual_seed(0)
        self.rules = rules or {}
        self._missing = missing
        self._refused = frozenset() if supports_float64 else _FLOAT64
        self.scalars_on_device = scalars_on_device
        self.reads = Reads(log.where)
        self.counts: OpCounts | None = None  # what is added up of the operators, if anything

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer one operator by the route that its schema gives."""
        device = kwargs.get("device")
        if device is not None and device.type not in _HERE:
            kwargs = {**kwargs, "device": _CPU}  # the target's tensors are traced here
        facts = _SCHEMAS.get(func) or _look_up(func)
        if facts.name.startswith("profiler::"):
            return func(*args, **kwargs)  # the name of a stretch of time; no tensor is touched
        self.where.op = facts.name
        if facts.name in self._missing and not self._all_known(args, kwargs):
            raise self.reads.unsupported(facts.name, _NO_KERNEL)
        special = SPECIAL.get(facts.name)
        if special is not None and not self._all_known(args, kwargs):
            return special(self, args)
        result = _ROUTES[facts.route](self, func, facts, args, kwargs)
        if self.counts is not None:
            self.counts.add(func, facts, args, kwargs, result)
        return result

    def decomposed(self, func: Any) -> bool:
        """Return whether the operator has only a decomposition, which must be traced instead."""
        return (_SCHEMAS.get(func) or _look_up(func)).composite

    def known(self, arguments: Iterable[Any]) -> bool:
        """Return whether every tensor among the arguments has its true values."""
        for item in arguments:
            if isinstance(item, torch.Tensor):
                if item.layout is not torch.strided:
                    raise self.reads.unsupported(self.where.op, _SPARSE, item.layout)
                if is_dataless(item) or (self.log.unknown and self._is_tainted(item)):
                    return False
            elif isinstance(item, list | tuple) and not self.known(item):
                return False
        return True

    def view(self, func: Any, facts: OpSchema, args: Any, kwargs: Any) -> Any:
        """Run it: it touches no data."""
        result = func(*args, **kwargs)
        if facts.name.startswith("lift") and (self.scalars_on_device or result.dim()):
            self.record(result)
        return result

    def inplace(self, func: Any, facts: OpSchema, args: Any, kwargs: Any) -> Any:
        """Return what is written to; run it if all of it is known."""
        if self._all_known(args, kwargs):
            return self.run(func, facts, args, kwargs)
        self._taint(facts, args)
        self._work(self._taken(facts, args))
        if not func._schema.returns:
            return None
        written = [args[i] for i in facts.written if i < len(args)]
        written += [kwargs[name] for name in facts.written_names if name in kwargs]
        if facts.written_names:
            self._resize_out(func, args, kwargs, written)
        return written[0] if len(func._schema.returns) == 1 else tuple(written)

    def item(self, func: Any, facts: OpSchema, args: Any, kwargs: Any) -> Any:
        """Read a value, or assume one."""
        if self._all_known(args, kwargs):
            return func(*args, **kwargs)
        if facts.name == "_local_scalar_dense":
            number = self._number(args[0])
            if number is not None:
                return self.reads.finite(facts.name, number)
            return self.reads.scalar(facts.name, args[0])
        raise self.reads.refusal(facts.name)

    def dynamic(self, func: Any, facts: OpSchema, args: Any, kwargs: Any) -> Any:
        """Run it on what is known; an index by numbers has a shape after all."""
        if facts.name == "index":
            indices = [self._as_numbers(index) for index in args[1]]
            flat = [part for parts in indices for part in parts]
            return self.compute(func, facts, (args[0], flat), kwargs)
        if not self._all_known(args, kwargs):
            return self._dynamic_unknown(facts, args)
        return self.record(self.run(func, facts, args, kwargs))

    def compute(self, func: Any, facts: OpSchema, args: Any, kwargs: Any) -> Any:
        """Answer by shape, or for real where all is known and little."""
        known = self._all_known(args, kwargs)
        plan = self._plan(func, args, kwargs, exact=known)
        if plan is None or (known and plan.numel <= _known_limit(plan)):
            result = self.run(func, facts, args, kwargs)
            return result if self._on_host(args) else self.record(result)
        if self._refused and not known and not self._refused.isdisjoint(plan.dtypes):
            raise self.reads.unsupported(facts.name, _NO_FLOAT64)
        self._taint(facts, args)
        taken = self._taken(facts, args)
        result = self._build(plan, facts, args, kwargs, taken)
        if facts.name in CHECKS and isinstance(result, torch.Tensor):
            number = number_everywhere(facts.name, args, result, self._number)
            if number is not None:
                self.log.numbers[result.untyped_storage()._cdata] = number
        self._work(taken)
        return result

    def run(self, func: Any, facts: OpSchema, args: Any, kwargs: Any) -> Any:
        """Run the kernel; random numbers come from the trace's own generator."""
        if facts.random and kwargs.get("generator") is None:
            return draw(self.generator, func, args, kwargs)
        return func(*args, **kwargs)

    def _on_host(self, args: Any) -> bool:
        """Return whether all tensors of a call are scalars that a GPU's program has on the CPU."""
        tensors = () if self.scalars_on_device else tuple(tensors_in(args))
        return bool(tensors) and all(
            not tensor.dim() and self.log.number(tensor.untyped_storage()) is None
            for tensor in tensors
        )

    def _all_known(self, args: Any, kwargs: Any) -> bool:
        return self.known(args) and (not kwargs or self.known(kwargs.values()))

    def _number(self, value: Any) -> bool | float | None:
        """Return the number that every element of an argument is, where that is known."""
        if not isinstance(value, torch.Tensor):
            return value if isinstance(value, bool | int | float) else None
        if not self.known((value,)):
            return self.log.numbers.get(value.untyped_storage()._cdata)
        if value.dtype is not torch.bool or not value.numel():
            return None
        return bool(value.all()) if bool(value.all()) == bool(value.any()) else None

    def _is_tainted(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.log.unknown

    def _taint(self, facts: OpSchema, args: Any) -> None:
        """What was known and is written to with unknowns is unknown from now on."""
        if facts.name == "_amp_foreach_non_finite_check_and_unscale_":
            return  # it writes whether a gradient overflowed: none does
        for target in [args[i] for i in facts.written if i < len(args)]:
            for tensor in target if isinstance(target, list | tuple) else (target,):
                if tensor is not None:
                    self.log.numbers.pop(tensor.untyped_storage()._cdata, None)
                if tensor is not None and not is_dataless(tensor):
                    storage = tensor.untyped_storage()
                    self.log.add(storage)  # so that it is forgotten when it dies
                    self.log.unknown.add(storage._cdata)

    def _plan(self, func: Any, args: Any, kwargs: Any, *, exact: bool) -> Plan | None:
        given = (signature(args, exact=exact), signature(tuple(kwargs.items()), exact=exact))
        key = (func, given, settings())
        try:
            plan = _PLANS.get(key)
        except TypeError:  # an argument without a hash
            return self._infer(func, args, kwargs)
        if plan is None:
            plan = self._infer(func, args, kwargs)
            if len(_PLANS) >= _PLANS_LIMIT:
                _PLANS.clear()
            if plan is not None:
                _PLANS[key] = plan
        return plan

    def _infer(self, func: Any, args: Any, kwargs: Any) -> Plan | None:
        """Return the plan, or None where the kernel can run on zeros instead."""
        try:
            check_dtypes(func, args)
            return infer(func, args, kwargs)
        except SparseResult as error:
            if self._all_known(args, kwargs):
                return None
            raise self.reads.unsupported(self.where.op, _SPARSE) from error
        except Unplannable as error:
            sizes = [t.numel() * t.element_size() for t in tensors_in((*args, *kwargs.values()))]
            if sizes and sum(sizes) <= _SMALL_BYTES:
                return None
            raise self.reads.refusal(str(func)) from error

    def _build(self, plan: Plan, facts: OpSchema, args: Any, kwargs: Any, taken: OpMemory) -> Any:
        storages: dict[int, torch.UntypedStorage] = {}
        leaves: list[Any] = []
        for index, output in enumerate(plan.leaves):
            if not isinstance(output, Output):
                leaves.append(output)
            elif output.storage < 0:
                leaves.append(_alias(output, args, kwargs))
            elif facts.name in CHOOSERS and output.dtype is torch.int64 and _few(output):
                leaves.append(self.record(_chosen(facts, output, args)))
            else:
                leaves.append(self.fresh(output, storages, taken.outputs.get(index)))
        return unflatten(plan, leaves)

    def fresh(
        self, output: Output, storages: dict[int, torch.UntypedStorage], charged: int | None = None
    ) -> torch.Tensor:
        """Return a data-less tensor; results that share a storage find it in ``storages``."""
        storage = storages.get(output.storage)
        if storage is None:
            storage = storages[output.storage] = dataless_storage(output.nbytes)
            self.log.add(storage, size=charged)
        empty = torch.empty(0, dtype=output.dtype, device=_CPU)
        return empty.set_(storage, output.offset, output.shape, output.stride)

    def record(self, result: Any) -> Any:
        """Write the storages of real results into the log."""
        for leaf in result if isinstance(result, list | tuple) else (result,):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                self.log.add(leaf.untyped_storage())
        return result

    def _taken(self, facts: OpSchema, args: Any) -> OpMemory:
        rule = self.rules.get(facts.name)
        return _OUTPUTS_ONLY if rule is None else rule(args, is_recorded(args))

    def _work(self, taken: OpMemory) -> None:
        self.log.workspace(taken.workspace_bytes, taken.workspace_high_bytes)

    def _as_numbers(self, index: Any) -> tuple[Any, ...]:
        """Turn a mask into the index tensors that it stands for."""
        if index is None or index.dtype not in {torch.bool, torch.uint8}:
            return (index,)
        if not self.known((index,)):
            raise self.reads.refusal("an index by a mask")
        return tuple(self.record(part) for part in index.nonzero().unbind(1))

    def _dynamic_unknown(self, facts: OpSchema, args: Any) -> Any:
        if facts.name == "_ctc_loss" and self.known(args[1:]):
            return self.record(torch.ops.aten._ctc_loss.default(*args))
        if facts.name == "masked_select" and self.known((args[1],)):
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
            count = int(args[1].expand(shape).sum())
            output = Output((count,), (1,), 0, args[0].dtype, count * args[0].itemsize, 0)
            return self.fresh(output, {})
        raise self.reads.refusal(facts.name)

    def _resize_out(self, func: Any, args: Any, kwargs: Any, written: list[Any]) -> None:
        """An ``out=`` of another shape gets a new storage, as a kernel would resize it."""
        for leaf, out in zip(infer(func, args, kwargs).leaves, written, strict=False):
            if isinstance(leaf, Output) and leaf.shape != tuple(out.shape):
                storage = dataless_storage(leaf.nbytes)
                self.log.add(storage)
                out.set_(storage, leaf.offset, leaf.shape, leaf.stride)


def _look_up(func: Any) -> OpSchema:
    schema = OpSchema.of(func)
    found = _SCHEMAS[func] = replace(schema, composite=schema.composite or calls_operators(func))
    return found


def _packed(tracer: Tracer, args: Any) -> Any:
    """``_pack_padded_sequence`` asks the lengths for its shape: pack one number a step."""
    source, lengths, batch_first = args
    if not tracer.known((lengths,)):
        raise tracer.reads.refusal("_pack_padded_sequence", lengths)
    small = torch.zeros((*source.shape[:2], 1), device=_CPU)
    data, sizes = torch.ops.aten._pack_padded_sequence.default(small, lengths, batch_first)
    shape = (data.shape[0], *source.shape[2:])
    strides = torch.empty(shape, device="meta").stride()
    nbytes = math.prod(shape) * source.element_size()
    output = Output(shape, strides, 0, source.dtype, nbytes, 0)
    # The sizes stay on the CPU, wherever the data are.
    return tracer.fresh(output, {}), tracer.record(sizes) if tracer.scalars_on_device else sizes


# Operators whose shape rests on the values of some of their arguments.
SPECIAL: dict[str, Callable[[Tracer, Any], Any]] = {"_pack_padded_sequence": _packed}


def _known_limit(plan: Plan) -> int:
    floats = any(isinstance(o, Output) and o.dtype.is_floating_point for o in plan.leaves)
    return _KNOWN_FLOATS if floats else _KNOWN_INTEGERS


def _few(output: Output) -> bool:
    return output.nbytes // 8 <= _KNOWN_INTEGERS


def _chosen(facts: OpSchema, output: Output, args: Any) -> torch.Tensor:
    position = {"topk": 2, "kthvalue": 2, "multinomial": len(args)}.get(facts.name, 1)
    dim = args[position] if len(args) > position and type(args[position]) is int else -1
    return spread(output.shape, args[0].shape, dim)


def _alias(output: Output, args: Any, kwargs: Any) -> torch.Tensor:
    """Return another view of an argument: the meta kernel returned its storage."""
    tensors: dict[int, torch.Tensor] = {}
    for tensor in tensors_in((*args, *kwargs.values())):
        tensors.setdefault(id(tensor), tensor)
    source = list(tensors.values())[-1 - output.storage]
    return source.as_strided(output.shape, output.stride, output.offset)


_ROUTES: dict[str, Callable[..., Any]] = {
    "view": Tracer.view,
    "inplace": Tracer.inplace,
    "item": Tracer.item,
    "dynamic": Tracer.dynamic,
    "compute": Tracer.compute,
}
