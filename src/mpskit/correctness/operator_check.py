"""Checks each operator of a run by itself: on the inputs that it gets, against the CPU.

An operator after a wrong one is right again, because its inputs are taken as they are. So the first
operator that is wrong is the one at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch

from mpskit.correctness.comparing import (
    Deviation,
    allowed_error,
    compare,
    exact_copy,
    least_scale,
    map_args,
)
from mpskit.correctness.lockstep import OpCall, on_cpu
from mpskit.dispatch.nested import tensors_of
from mpskit.dispatch.op_schema import OpSchema

__all__ = ["EQUIVALENTS", "Fault", "Found", "OperatorCheck", "run_on_cpu"]

# What an operator that only one backend has computes, as source that a script can hold too.
EQUIVALENTS = MappingProxyType(
    {
        "_scaled_dot_product_attention_math_for_mps": (
            "torch.ops.aten._scaled_dot_product_attention_math"
        ),
        "_mps_convolution": (
            "lambda x, w, b, pad, stride, dil, groups: torch.ops.aten.convolution("
            "x, w, b, stride, pad, dil, False, [0] * len(stride), groups)"
        ),
        "mps_convolution_backward": (
            "lambda x, g, w, pad, stride, dil, groups, mask: torch.ops.aten.convolution_backward("
            "g, x, w, [w.shape[0]], stride, pad, dil, False, [0] * len(stride), groups, mask)"
        ),
        "_mps_convolution_transpose": (
            "lambda x, w, pad, more, stride, dil, groups: torch.ops.aten.convolution("
            "x, w, None, stride, pad, dil, True, more, groups)"
        ),
        "linear_backward": (
            "lambda x, g, w, mask: (g @ w if mask[0] else None, "
            "g.flatten(0, -2).T @ x.flatten(0, -2) if mask[1] else None, "
            "g.flatten(0, -2).sum(0) if mask[2] else None)"
        ),
    }
)
# Their results hold what was there before, or say nothing of values.
_UNCHECKED = frozenset(
    [
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "empty_permuted",
        "resize_",
        "set_",
        "_local_scalar_dense",
        "detach",
        "alias",
        "lift",
        "lift_fresh",
        "_unsafe_view",
        "is_same_size",
    ]
)
_INDICES = frozenset(
    ["topk", "sort", "max", "min", "median", "kthvalue", "mode", "nanmedian", "cummax", "cummin"]
)
_OPAQUE = frozenset({"_lstm_mps", "lstm_mps_backward"})


class Found(Exception):  # noqa: N818 - it ends a run that has found what it looked for
    """Ends a run: the operator that is wrong is known."""


class Fault:
    """A wrong operator, with the inputs that it got."""

    def __init__(self, call: OpCall, args: Any, kwargs: Any, deviation: Deviation) -> None:
        self.call, self.args, self.kwargs, self.deviation = call, args, kwargs, deviation


class OperatorCheck:
    """Checks operators until one is wrong.

    Args:
        device: the device's type.
        wanted: whether an operator is checked.
        nonfinite: look for the first result that is not finite where the inputs are, and check
            nothing else: ``nan``, ``inf``, or None.
    """

    def __init__(
        self, device: str, wanted: Callable[[OpCall], bool], nonfinite: str | None = None
    ) -> None:
        self._device, self._wanted, self._nonfinite = device, wanted, nonfinite
        self._schemas: dict[Any, OpSchema] = {}
        self.fault: Fault | None = None
        self.checked = 0
        self.unchecked: dict[str, str] = {}

    def __call__(self, call: OpCall, run: Callable[[], Any]) -> Any:
        """Run an operator and check it.

        Raises:
            Found: it is wrong; ``fault`` says which.
        """
        schema = self._schemas.get(call.func)
        if schema is None:
            schema = self._schemas[call.func] = OpSchema.of(call.func)
        if not self._wanted(call) or schema.route in ("view", "item"):
            return run()
        if call.name in _UNCHECKED or call.func.namespace != "aten":
            return run()
        args, kwargs = map_args(call.args, exact_copy), map_args(call.kwargs, exact_copy)
        result = run()
        written = [call.args[i] for i in schema.written if i < len(call.args)]
        written += [call.kwargs[name] for name in schema.written_names if name in call.kwargs]
        got = _results(result, written, schema)
        if call.name in _OPAQUE and self._nonfinite is None:
            self.unchecked[call.name] = "it draws random numbers inside its kernel"
        else:
            on_cpu(lambda: self._judge(call, args, kwargs, got, schema))
        return result

    def _judge(
        self, call: OpCall, args: Any, kwargs: Any, got: list[Any], schema: OpSchema
    ) -> None:
        if self._nonfinite is not None:
            self._look(call, args, kwargs, got, self._nonfinite)
        else:
            self._compare(call, args, kwargs, got, schema)

    def _compare(
        self, call: OpCall, args: Any, kwargs: Any, got: list[Any], schema: OpSchema
    ) -> None:
        try:
            same = run_on_cpu(call, args, kwargs, schema)
        except Exception as error:  # noqa: BLE001 - no kernel on the CPU, in many words
            self.unchecked[call.name] = f"{type(error).__name__} on the CPU"
            return
        try:
            exact = run_on_cpu(call, args, kwargs, schema, lift=True)
        except Exception:  # noqa: BLE001 - an operator without float64
            exact = same
        self.checked += 1
        worst = self._worst(call, args, got, same, exact)
        if worst is not None:
            self.fault = Fault(call, args, kwargs, worst)
            raise Found

    def _worst(
        self, call: OpCall, args: Any, got: list[Any], same: list[Any], exact: list[Any]
    ) -> Deviation | None:
        scale = least_scale(call.name, args)
        for at, (one, cpu, right) in enumerate(zip(got, same, exact, strict=False)):
            if one is None or cpu is None or right is None:
                continue
            if at and one.shape != cpu.shape:
                continue  # what a kernel keeps for its own backward pass
            if not one.is_floating_point() and _is_choice(call.name, at, one, cpu, args):
                continue
            rounding = allowed_error(call.name, args, one, self._device)
            found = compare(one, cpu, right, rounding=rounding, scale=scale)
            if found.wrong:
                return found
        return None

    def _look(self, call: OpCall, args: Any, kwargs: Any, got: list[Any], kind: str) -> None:
        bad = torch.isnan if kind == "nan" else torch.isinf
        floats = [t for t in got if t is not None and t.is_floating_point()]
        inputs = [t for t in tensors_of(args) if t.is_floating_point()]
        if any(bad(t).any() for t in floats) and not any(bad(t).any() for t in inputs):
            if kind == "inf" and not inputs:
                return  # a constant, such as the -inf of a mask
            self.fault = Fault(call, args, kwargs, Deviation(float("inf"), 0.0, 0.0))
            raise Found


def run_on_cpu(
    call: OpCall, args: Any, kwargs: Any, schema: OpSchema, *, lift: bool = False
) -> list[Any]:
    """Run an operator on copies of CPU tensors and return its results and what it wrote.

    Args:
        call: the operator.
        args: CPU tensors in the place of the device's; left as they are.
        kwargs: the same by name.
        schema: of the operator.
        lift: compute in float64.
    """

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if lift and tensor.is_floating_point():
            return tensor.double()
        return exact_copy(tensor)

    args, kwargs = map_args(args, copied), map_args(kwargs, copied)
    if isinstance(kwargs.get("device"), torch.device):
        kwargs["device"] = torch.device("cpu")
    if lift and isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
        kwargs["dtype"] = torch.float64
    source = EQUIVALENTS.get(call.name)
    func = call.func if source is None else eval(source, {"torch": torch})  # noqa: S307 - our own
    result = func(*args, **kwargs)
    written = [args[i] for i in schema.written if i < len(args)]
    written += [kwargs[name] for name in schema.written_names if name in kwargs]
    return _results(result, written, schema)


def _results(result: Any, written: list[Any], schema: OpSchema) -> list[Any]:
    """Return copies of what an operator returned and wrote, with None where there is nothing."""
    outs: list[Any] = []
    if schema.route != "inplace":
        flat = result if isinstance(result, list | tuple) else [result]
        outs += [one for item in flat for one in (item if isinstance(item, list) else [item])]
    outs += [one for item in written for one in (item if isinstance(item, list) else [item])]
    return [exact_copy(one) if isinstance(one, torch.Tensor) else None for one in outs]


def _is_choice(op: str, at: int, got: torch.Tensor, same: torch.Tensor, args: Any) -> bool:
    """Return whether other indices are as right: equal values have no order."""
    if op in _INDICES and at:
        return True
    if op not in ("argmax", "argmin") or got.shape != same.shape:
        return False
    values, dim = args[0], args[1] if len(args) > 1 else None
    if dim is None:
        return bool(values.flatten()[got] == values.flatten()[same])
    if got.dim() < values.dim():
        got, same = got.unsqueeze(dim), same.unsqueeze(dim)
    return torch.equal(values.gather(dim, got), values.gather(dim, same))
