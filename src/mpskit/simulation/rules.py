"""Facts about each operator and dtype on the simulated Mac, cached."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._library import custom_ops

from mpskit.backends.versions import has, older
from mpskit.dispatch.mps_op_memory import RULES, Rule
from mpskit.dispatch.op_schema import OpSchema
from mpskit.simulation.coverage import Coverage, Status
from mpskit.simulation.reference_kernels import KERNELS

__all__ = ["OpFacts", "Rules", "dtype_refusal", "in_kernel"]


_FIRST_MACOS_WITH_ALL = "14.0"
_MADE = "Cannot convert a MPS Tensor to float64 dtype"
_USED = "Cannot convert a float64 Tensor to MPS"
_WHY = "as the MPS framework doesn't support float64. Please use float32 instead."
_UNKNOWN = "Trying to convert {} to the MPS backend but it does not have support for that dtype."

# dtype -> the name that C++ prints. complex128 can be moved to a real MPS up to torch 2.10 at
# least and fails at its first use (pytorch#176981); it is refused at once here, with the text of
# that first use.
_NEVER = {
    "complex128": "ComplexDouble",
    "float8_e5m2": "Float8_e5m2",
    "float8_e4m3fnuz": "Float8_e4m3fnuz",
    "float8_e5m2fnuz": "Float8_e5m2fnuz",
    "float8_e8m0fnu": "Float8_e8m0fnu",
    "float4_e2m1fn_x2": "Float4_e2m1fn_x2",
}


def dtype_refusal(dtype: torch.dtype, *, torch_version: str, macos: str) -> TypeError | None:
    """Return the error that MPS raises for a tensor of a dtype; None if it supports it.

    A tensor that moves to MPS is allocated there first, so it meets the same text as one made
    there: ``torch.ones(1, dtype=torch.float64).to("mps")`` says "Cannot convert a MPS Tensor to
    float64 dtype" (tianshou#1237 on 2.1.1 and 2.5.1, pytorch#79019).

    Args:
        dtype: dtype of the tensor that would be on ``mps``.
        torch_version: the installed torch.
        macos: the machine's macOS, as ``"15.6"``.
    """
    text = _text(str(dtype).removeprefix("torch."), torch_version, macos)
    return TypeError(text) if text else None


def in_kernel(dtype: torch.dtype, *, torch_version: str, macos: str) -> TypeError | None:
    """Return the error of a kernel that gets a CPU tensor of a dtype that MPS lacks."""
    name = str(dtype).removeprefix("torch.")
    text = f"{_USED} {_WHY}" if name == "float64" else _text(name, torch_version, macos)
    return TypeError(text) if text else None


def _text(name: str, torch_version: str, macos: str) -> str | None:
    if name == "float64":
        return f"{_MADE} {_WHY}"
    if name == "bfloat16":
        return _bfloat16(torch_version, macos)
    if name == "complex64" and _needs_newer_macos(torch_version, macos):
        return "MPS complex types are only supported on MacOS 14.0 or newer."
    if name == "float8_e4m3fn" and not has("mps.float8_e4m3fn", torch_version):
        return _UNKNOWN.format("Float8_e4m3fn")
    return _UNKNOWN.format(_NEVER[name]) if name in _NEVER else None


def _bfloat16(torch_version: str, macos: str) -> str | None:
    if not has("mps.bfloat16", torch_version):
        return "BFloat16 is not supported on MPS"
    if _needs_newer_macos(torch_version, macos):
        return "MPS BFloat16 is only supported on MacOS 14 or newer"
    return None


def _needs_newer_macos(torch_version: str, macos: str) -> bool:
    """Return whether bfloat16 and complex need macOS 14 and do not have it (torch ..2.8)."""
    everywhere = has("mps.bfloat16.any_macos", torch_version)
    return not everywhere and older(macos, _FIRST_MACOS_WITH_ALL)


_MOVES = frozenset(
    {
        torch.ops.aten._to_copy.default,
        torch.ops.aten.copy_.default,
        torch.ops.aten._copy_from.default,
    }
)
# PackedSequence.cpp makes these on the CPU whatever the data are on: operator -> result.
_ON_CPU = {"aten::_pack_padded_sequence": 1, "aten::_pad_packed_sequence": 1}
_DTYPES = tuple(value for value in vars(torch).values() if isinstance(value, torch.dtype))

Gate = Callable[[Sequence[Any], Mapping[str, Any]], None]


@dataclasses.dataclass(slots=True, frozen=True)
class OpFacts(OpSchema):
    """Facts about one operator; composite ones come here in inference mode only.

    Attributes:
        moves: it may read one device and write another.
        cpu_result: position of a result that stays on the CPU.
        body: its kernel, if that is Python code, which must run inside the simulation.
        kernel: the replacement for the MPS kernel, if the CPU's differs.
        mixes: it accepts tensors on two devices.
        memory: the rule for its MPS memory beyond its outputs; None if there is none.
        gate: raises a Mac's errors before it runs; None if there are none.
    """

    moves: bool
    cpu_result: int | None
    body: Callable[..., Any] | None
    kernel: Callable[..., Any] | None
    mixes: bool
    memory: Rule | None
    gate: Gate | None


class Rules:
    """Coverage and dtype rules of one torch version on one macOS.

    Attributes:
        fallbacks: operators that ran on the CPU instead, in order, each once.
        known: facts of the operators seen so far.
        refused: dtypes that MPS does not support.
    """

    def __init__(
        self, coverage: Coverage, torch_version: str, macos: str, *, fallback: bool
    ) -> None:
        self._coverage = coverage
        self._torch_version = torch_version
        self._macos = macos
        self._fallback = fallback
        self.fallbacks: list[str] = []
        self.known: dict[Any, OpFacts] = {}
        self.check_layout = coverage.check_layout
        self.refused = frozenset(d for d in _DTYPES if self.refusal(d) is not None)

    def refusal(self, dtype: torch.dtype) -> Exception | None:
        """Return the error of a dtype that MPS does not take, or None."""
        return dtype_refusal(dtype, torch_version=self._torch_version, macos=self._macos)

    def facts(self, func: Any) -> OpFacts:
        """Determine the facts of a new operator."""
        name, body = func._schema.name, _body(func)
        facts = OpFacts.of(
            func,
            moves=func in _MOVES,
            cpu_result=_ON_CPU.get(name),
            body=body,
            kernel=KERNELS.get(name),
            mixes=func in _MOVES or body is not None or self._runs_on_cpu(func),
            memory=RULES.get(name.removeprefix("aten::")),
            gate=self._gate(func),
        )
        self.known[func] = facts
        return facts

    def is_missing(self, func: Any) -> bool:
        """Return whether MPS has no kernel for an operator, whatever its arguments are."""
        return self._coverage.status(func) is Status.MISSING

    def _runs_on_cpu(self, func: Any) -> bool:
        """Return whether torch moves an operator's tensors to the CPU and runs it there."""
        status = self._coverage.status(func)
        return status is Status.ALWAYS_CPU or (status is Status.MISSING and self._fallback)

    def _gate(self, func: Any) -> Gate | None:
        if self._runs_on_cpu(func):
            return self._falls_back(func)
        if self._coverage.status(func) is Status.MISSING:
            return self._missing(func)
        return self._coverage.check_for(func)

    def _missing(self, func: Any) -> Gate:
        def refuse(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
            raise self._coverage.missing_error(func)

        return refuse

    def _falls_back(self, func: Any) -> Gate:
        name = func._schema.name
        check = self._coverage.check_for(func)

        def run_on_cpu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            if check is not None:
                check(args, kwargs)
            # Torch warns once per process, for the first such operator.
            if not self.fallbacks:
                warnings.warn(self._coverage.fallback_warning(func), UserWarning, stacklevel=3)
            if name not in self.fallbacks:
                self.fallbacks.append(name)

        return run_on_cpu


def _body(func: Any) -> Callable[..., Any] | None:
    """Return the Python function behind an operator of ``torch.library.custom_op``, or None."""
    definition = custom_ops.OPDEFS.get(func._schema.name)
    kernels = getattr(definition, "_backend_fns", {})
    return kernels.get("cpu") or kernels.get(None)
