"""What a model's step computes, counted in the trace that also gives its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mpskit._base.arguments import wrong_type
from mpskit.backends.precisions import PrecisionLike
from mpskit.dispatch.intercept import calls_operators, intercepting
from mpskit.dispatch.op_counts import OpCounts
from mpskit.dispatch.op_schema import OpSchema
from mpskit.errors import EstimateError
from mpskit.estimate.api import trace_inference, trace_training
from mpskit.estimate.result import MemoryEstimate
from mpskit.estimate.trace.optimizers import optimizer_class
from mpskit.estimate.trace.run import build_model
from mpskit.speed.workload import Workload

__all__ = [
    "class_of_step",
    "count_running",
    "count_step",
    "count_with_memory",
    "workload_of",
]

# From this share of a step's arithmetic on, a class speaks for the step.
_MOST = 0.5
# A network whose convolutions have a group for each channel this often is a depthwise one.
_DEPTHWISE = 0.25
# Up to this many launches a step without gradients is one operator, not a model.
_ONE_OPERATOR = 4
# The perceptrons behind the class have 10^6 to 1.4 x 10^8 operations a launch
# (benchmarks/data/cpu_vs_mps.csv); of larger ones nothing was published.
_SMALL_LAUNCH = 1.4e8
_MATRIX = ("gemm", "conv", "sdpa", "rnn")


def count_step(model: Any, batch: Any, **options: Any) -> Workload:
    """Return the counts of one step; see :meth:`Workload.of`."""
    return count_with_memory(model, batch, **options)[0]


def count_with_memory(
    model: Any,
    batch: Any,
    *,
    step: Callable[[Any, Any], Any] | None = None,
    train_step: Callable[[Any, Any, Any], Any] | None = None,
    optimizer: Any = "AdamW",
    precision: PrecisionLike = "fp32",
    accumulate: int = 1,
    training: bool = True,
    device: str | torch.device | None = None,
) -> tuple[Workload, MemoryEstimate]:
    """Return the counts of one step and the estimate of its memory, from one trace.

    Args:
        model: as for :func:`mpskit.estimate_training_memory`.
        batch: as there.
        step: as there; without gradients, any call.
        train_step: as there.
        optimizer: as there, or the name of one of ``torch.optim``.
        precision: as there.
        accumulate: as there.
        training: False counts a call without gradients; ``train_step``, ``optimizer`` and
            ``accumulate`` are then not used.
        device: whose memory is meant: None is ``mps``, or ``cpu`` where MPS refuses the step.

    Raises:
        EstimateError: the step cannot be traced.
        ArgumentError: a value that cannot be used.
    """
    if not isinstance(training, bool):
        raise wrong_type("training", "True or False", training)
    module = build_model(model).module
    chosen = optimizer_class(optimizer)

    def trace(target: str | torch.device, counts: OpCounts) -> Any:
        if not training:
            return trace_inference(
                module, batch, step=step, precision=precision, device=target, counts=counts
            )
        return trace_training(
            module,
            batch,
            step=step,
            train_step=train_step,
            optimizer=chosen,
            precision=precision,
            accumulate=accumulate,
            device=target,
            counts=counts,
        )

    counts = OpCounts()
    try:
        traced = trace("mps" if device is None else device, counts)
    except EstimateError:
        if device is not None:
            raise
        counts = OpCounts()
        traced = trace("cpu", counts)  # what MPS refuses may run here, and then that is the answer
    estimate = traced.estimate()
    layers = torch.nn.RNNBase | torch.nn.RNNCellBase
    recurrent = any(isinstance(part, layers) for part in module.modules())
    more = {
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "peak_bytes": estimate.peak_bytes,
    }
    return workload_of(counts, recurrent=recurrent, training=training, **more), estimate


def count_running(step: Callable[[], Any]) -> Workload:
    """Return the counts of a step that runs on the CPU, as a trace of it would count them.

    Raises:
        Whatever the step raises.
    """
    counter = _Counter()
    with intercepting(counter):
        step()
    return workload_of(counter.counts, recurrent=False, training=counter.backward)


class _Counter:
    """Runs every operator, and counts it."""

    def __init__(self) -> None:
        self.counts = OpCounts()
        self.backward = False
        self._schemas: dict[Any, OpSchema] = {}

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        schema = self._schema(func)
        self.backward = self.backward or torch._C._current_autograd_node() is not None
        self.counts.add(func, schema, args, kwargs, result)
        return result

    def decomposed(self, func: Any) -> bool:
        return self._schema(func).composite or calls_operators(func)

    def _schema(self, func: Any) -> OpSchema:
        found = self._schemas.get(func)
        if found is None:
            found = self._schemas[func] = OpSchema.of(func)
        return found


def class_of_step(counts: OpCounts, *, recurrent: bool, training: bool) -> str | None:
    """Return the class of ``data/speed.toml`` that a step belongs to.

    Args:
        counts: of the step.
        recurrent: the model has a recurrent layer, which torch may have taken apart.
        training: the step computes gradients.
    """
    single = not training and counts.launches <= _ONE_OPERATOR
    if single:
        return _heaviest(counts.flops_by_class, counts.launches_by_class)
    launches, flops = counts.launches_by_class, counts.flops_by_class
    whole = sum(flops.values()) or 1.0
    if flops["conv"] >= _MOST * whole:
        depthwise = counts.depthwise >= _DEPTHWISE * launches["conv"]
        return "dwcnn" if depthwise else "cnn"
    if recurrent or flops["rnn"] >= _MOST * whole:
        return "rnn"
    if launches["sdpa"] or (launches["softmax"] and launches["norm"]):
        return "transformer"
    small = counts.flops <= _SMALL_LAUNCH * counts.launches
    return "mlp" if flops["gemm"] >= _MOST * whole and small else None


def _heaviest(flops: Mapping[str, float], launches: Mapping[str, int]) -> str | None:
    """Return the class of an operator that multiplies, if there is one, else the largest."""
    kinds = [kind for kind in _MATRIX if kind in launches] or list(launches)
    return max(kinds, key=lambda kind: flops[kind], default=None)


def workload_of(counts: OpCounts, *, recurrent: bool, training: bool, **more: int) -> Workload:
    """Return the counts of a step as what a prediction of its speed needs.

    Args:
        counts: of the step.
        recurrent: the model has a recurrent layer, which torch may have taken apart.
        training: the step computes gradients.
        more: other fields of the workload.
    """
    by_dtype = counts.flops_by_dtype
    return Workload(
        flops=counts.flops,
        bytes_moved=counts.bytes_moved,
        launches=counts.launches,
        dtype=max(by_dtype, key=lambda name: by_dtype[name], default=None),
        op_class=class_of_step(counts, recurrent=recurrent, training=training),
        training=training,
        torch_version=torch.__version__.split("+")[0],
        **more,
    )
