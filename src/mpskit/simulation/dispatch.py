"""Layer 2, the dispatch mode: sees every operator, checks it as a Mac would, tags what it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit.simulation import messages
from mpskit.simulation.core import CPU, Simulation, ThreadState, asks_mps
from mpskit.simulation.placement import BOTH, ON_MAC, scanner

if TYPE_CHECKING:
    from mpskit.simulation.rules import OpFacts

__all__ = ["DispatchMode"]

_MOST_DIMENSIONS = 16


class DispatchMode(TorchDispatchMode):
    """One thread's dispatch mode; it keeps state, so every thread has its own."""

    def __init__(self, simulation: Simulation, state: ThreadState) -> None:
        super().__init__()
        self._simulation = simulation
        self._state = state
        self._facts = simulation.rules.facts
        self._known = simulation.rules.known
        self._scan = scanner(simulation.tags)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator on the CPU with the Mac's checks before and the Mac's tags after."""
        facts = self._known.get(func) or self._facts(func)
        where = self._scan(args)
        if kwargs:
            where |= self._scan(kwargs.values())
        else:
            kwargs = {}
        if where:
            self._state.last_on_mac = bool(where & ON_MAC)
        if facts.has_device:
            on_mac = self._target(facts, where, kwargs)
        else:
            on_mac = bool(where & ON_MAC)
        if not on_mac:
            return func(*args, **kwargs)
        return self._run(func, facts, where, args, kwargs)

    def _run(self, func: Any, facts: OpFacts, where: int, args: Any, kwargs: Any) -> Any:
        if where == BOTH and not facts.moves:
            self._simulation.rules.check_mix(func, args, kwargs)
        if facts.gate is not None:
            facts.gate(args, kwargs)
        result = func(*args, **kwargs)
        if facts.fresh:
            self._tag(result)
        return result

    def _tag(self, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            if result.dtype in self._simulation.rules.refused:
                raise self._simulation.rules.refusal(result.dtype, creating=True)
            if result.dim() > _MOST_DIMENSIONS:
                raise RuntimeError(messages.too_many_dimensions(result.dim()))
            self._simulation.tags.add(result)
        elif isinstance(result, (list, tuple)):
            for part in result:
                self._tag(part)

    def _target(self, facts: OpFacts, where: int, kwargs: dict[str, Any]) -> bool:
        """Return whether the result is to be on the Mac; put CPU in place of ``mps``."""
        if self._state.target is not None and facts.moves:
            return self._state.target.type == "mps"
        device = kwargs.get("device")
        if device is None:
            return bool(where & ON_MAC)
        if asks_mps(device):
            kwargs["device"] = CPU
            return True
        return device.type == "cpu" and "pin_memory" not in kwargs and self._made_inside(where)

    def _made_inside(self, where: int) -> bool:
        """Return whether C++ code that works on mps tensors asked for a tensor "on the CPU".

        It copies the options of its arguments, whose device it takes for the CPU. A call from
        Python always carries ``pin_memory``, one from C++ never does.
        """
        if where:
            return bool(where & ON_MAC)
        call = self._state.call
        if call is None:
            return self._state.last_on_mac
        args, kwargs = call
        return bool((self._scan(args) | self._scan(kwargs.values())) & ON_MAC)
