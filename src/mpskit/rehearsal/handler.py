"""The simulated Mac's handler of operators for a rehearsal: no kernel runs, no refusal ends it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from mpskit.correctness.operators import OpUse
from mpskit.correctness.traced_operators import record_use
from mpskit.dispatch.intercept import calls_operators
from mpskit.dispatch.nested import tensors_in
from mpskit.dispatch.op_counts import OpCounts
from mpskit.estimate.trace.tracer import Tracer
from mpskit.rehearsal.findings import WAIT_FIXES, Findings, Kind, Spot, spot_of
from mpskit.simulation.core import Simulation, ThreadState
from mpskit.simulation.device_mismatch import check_mix
from mpskit.simulation.operators import Dispatch
from mpskit.simulation.rules import OpFacts
from mpskit.simulation.tags import BOTH, ON_MAC
from mpskit.speed.watch import Wait, wait_of

__all__ = ["Rehearsing", "ScriptDispatch"]

_WAITING = frozenset({"item", "dynamic"})
_FLOAT32 = {torch.float64: torch.float32, torch.complex128: torch.complex64}

_FIXES = {
    Kind.OPERATOR: "PYTORCH_ENABLE_MPS_FALLBACK=1 before torch is imported, or another operator",
    Kind.DTYPE: "convert to float32 first",
    Kind.DEVICES: "move the tensor to the model's device (.to(device))",
    Kind.PINNED: "pin_memory=False on a Mac",
    Kind.COLLECTIVE: "train on one process: MPS has no collectives",
}
# What a site of the simulation refuses, where it is no operator's check.
_SITES = {"pin_memory": Kind.PINNED}


@dataclass
class Rehearsing:
    """What the handlers of all threads share."""

    tracer: Tracer
    findings: Findings
    counts: OpCounts
    uses: dict[OpUse, Spot]
    watched_ops: frozenset[str]
    strict: bool

    @property
    def is_new(self) -> bool:
        """Whether operators are still counted and looked at: later steps are as the second."""
        return self.tracer.where.step < 2

    def refuse(self, error: Exception, op: str) -> None:
        """Write down what a Mac refuses; raise it where the first one ends the run."""
        self.problem(_SITES.get(op, Kind.DEVICES), error, op)

    def problem(self, kind: Kind, error: Exception, op: str) -> None:
        """Write one problem down, or raise it."""
        if self.strict:
            raise error
        spot = spot_of(sys._getframe(1))
        self.findings.add(kind, op, _first_sentence(error), _FIXES.get(kind, ""), spot=spot)

    def wait(self, wait: Wait, op: str) -> None:
        """Write down that the host waits."""
        spot = spot_of(sys._getframe(1))
        kind = Kind.CACHE if wait is Wait.CACHE else Kind.WAIT
        self.findings.add(kind, op, wait.value, WAIT_FIXES[wait], spot=spot)

    def note_call(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, compiled: bool = False
    ) -> None:
        """Remember how a function with a known bug is called, and where first."""
        found: set[OpUse] = set()
        with torch._C.DisableTorchFunction():
            record_use(found, name, args, kwargs, compiled=compiled)
        for use in found:
            if use not in self.uses:
                self.uses[use] = spot_of(sys._getframe(1))


class ScriptDispatch(Dispatch):
    """One thread's handler.

    Args:
        simulation: the machine.
        state: the thread's.
        shared: what the threads share.
    """

    def __init__(self, simulation: Simulation, state: ThreadState, shared: Rehearsing) -> None:
        super().__init__(simulation, state)
        self._shared = shared
        self._answer = shared.tracer.answer

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer one operator, without the function mode seeing each question about a tensor."""
        facts = self._known.get(func) or self._simulation.rules.facts(func)
        if facts.composite or facts.body is not None:
            return super().answer(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            return super().answer(func, args, kwargs)

    def decomposed(self, func: Any) -> bool:
        """Return whether an operator has a kernel that only calls others."""
        return calls_operators(func)

    def _call(self, func: Any, facts: OpFacts, on_mac: bool, args: Any, kwargs: Any) -> Any:
        if facts.body is not None and not self._simulation.closed:
            return self._inside(facts.body, args, kwargs)
        result = self._answer(func, args, kwargs)
        if not on_mac and facts.name == "_to_copy" and self._scan(args) & ON_MAC:
            self._waits(facts, args, kwargs, result)
        return result

    def _compute(self, func: Any, facts: OpFacts, args: Any, kwargs: dict[str, Any]) -> Any:
        result = self._call(func, facts, True, args, kwargs)
        shared = self._shared
        if facts.route in _WAITING or facts.name == "copy_":
            self._waits(facts, args, kwargs, result)
        if shared.is_new:
            if facts.name in shared.watched_ops:
                shared.note_call(facts.name, args, kwargs)
            shared.counts.add(func, facts, args, kwargs, result)
        return result

    def _waits(self, facts: OpFacts, args: Any, kwargs: Any, result: Any) -> None:
        given = list(tensors_in((*args, *kwargs.values())))
        made = result if isinstance(result, list | tuple) else (result,)
        wait = wait_of(facts, "mps", given, made)
        if wait is not None:
            self._shared.wait(wait, facts.name)

    def _check(self, func: Any, facts: OpFacts, where: int, args: Any, kwargs: Any) -> None:
        self._shared.tracer.where.op = facts.name
        known = len(self._simulation.rules.fallbacks)
        if facts.gate is not None:
            try:
                facts.gate(args, kwargs)
            except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                self._shared.problem(self._kind_of(func), error, facts.name)
                return  # its fallback takes tensors of both devices
            if len(self._simulation.rules.fallbacks) > known or facts.mixes:
                self._fell_back(func, facts)
        if where == BOTH and not facts.mixes:
            try:
                check_mix(func, args, kwargs, self._tags.has)
            except RuntimeError as error:
                self._shared.problem(Kind.DEVICES, error, facts.name)

    def _kind_of(self, func: Any) -> Kind:
        if func.namespace == "c10d":
            return Kind.COLLECTIVE
        missing = self._simulation.rules.is_missing(func)
        return Kind.OPERATOR if missing else Kind.ARGUMENTS

    def _fell_back(self, func: Any, facts: OpFacts) -> None:
        name = func._schema.name
        if name in self._simulation.rules.fallbacks:
            text = f"{name} runs on the CPU: MPS has no kernel for it, and each call waits"
            self._shared.findings.add(
                Kind.FALLBACK, facts.name, text, "use another operator in the loop"
            )

    def _accepted(self, facts: OpFacts, result: Any, kwargs: Any) -> Any:
        """Go on in float32 where the Mac has no float64."""
        result = super()._accepted(facts, result, kwargs)
        if isinstance(result, torch.Tensor):
            return self._narrowed(result, facts.name)
        if isinstance(result, list | tuple):
            return type(result)(
                self._narrowed(one, facts.name) if isinstance(one, torch.Tensor) else one
                for one in result
            )
        return result

    def _narrowed(self, tensor: torch.Tensor, op: str) -> torch.Tensor:
        if tensor.dtype not in self._refused:
            return tensor
        error = self._simulation.rules.refusal(tensor.dtype) or TypeError(str(tensor.dtype))
        self._shared.problem(Kind.DTYPE, error, op)
        dtype = _FLOAT32.get(tensor.dtype)
        if dtype is None:
            return tensor
        narrow: torch.Tensor = self._answer(
            torch.ops.aten._to_copy.default, (tensor,), {"dtype": dtype}
        )
        return narrow

    def _tag(self, result: Any, *, any_shape: bool = False) -> None:
        """Tag dtypes that the Mac refuses too: that has been said by now."""
        if isinstance(result, torch.Tensor) and result.dtype in self._refused:
            self._tags.add(result)
        else:
            super()._tag(result, any_shape=any_shape)


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of torch's text: the rest asks for votes on an issue."""
    return str(error).splitlines()[0].split(". ")[0].rstrip(".") if str(error) else repr(error)
