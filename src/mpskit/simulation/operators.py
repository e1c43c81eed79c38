"""Layer 2: intercepts every operator, checks it as a Mac would, tags its results.

Each thread has one handler and one function mode. While a user's mode is active, or where an
operator gets a tensor with its own ``__torch_dispatch__``, torch cannot run a fallback registered
from Python: the handler then moves from the dispatch key to the stack of modes, below the user's
(``Bridge``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit.dispatch.intercept import intercepting, registered_key, seen_again
from mpskit.dispatch.patches import Patches
from mpskit.simulation import messages, op_memory
from mpskit.simulation.autograd import runs_on_mac
from mpskit.simulation.core import CPU, Simulation, ThreadState, asks_mps
from mpskit.simulation.device_mismatch import check_mix
from mpskit.simulation.functions import FunctionMode
from mpskit.simulation.loader import PIN_ERROR
from mpskit.simulation.tags import BOTH, ON_MAC, scanner

if TYPE_CHECKING:
    from mpskit.simulation.rules import OpFacts

__all__ = ["Bridge", "Dispatch", "install", "modes"]


_MOST_DIMENSIONS = 16
# empty_mps checks the number of dimensions; empty_strided_mps, which these call, does not
# (EmptyTensor.cpp).
_STRIDED = frozenset({"_to_copy", "clone", "empty_like", "empty_strided", "new_empty_strided"})


class Dispatch:
    """The operator handler of one thread; it has state, so every thread has its own."""

    def __init__(self, simulation: Simulation, state: ThreadState) -> None:
        self._simulation = simulation
        self._state = state
        self._known = simulation.rules.known
        self._scan = scanner(simulation.tags)
        self._tags = simulation.tags
        self._refused = simulation.rules.refused

    def decomposed(self, func: Any) -> bool:  # noqa: ARG002
        """Return whether an operator has to be decomposed: none has."""
        return False

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator on the CPU with the Mac's checks before and the Mac's tags after."""
        facts = self._known.get(func) or self._simulation.rules.facts(func)
        if facts.composite:
            with self._again():
                return func.decompose(*args, **kwargs)
        where = self._scan(args)
        if kwargs:
            where |= self._scan(kwargs.values())
        on_mac = self._target(facts, where, kwargs) if facts.has_device else bool(where & ON_MAC)
        if on_mac and not self._simulation.closed:
            return self._run(func, facts, where, args, kwargs)
        return self._call(func, facts, on_mac, args, kwargs)

    def _call(self, func: Any, facts: OpFacts, on_mac: bool, args: Any, kwargs: Any) -> Any:
        if facts.random:
            return self._draw(func, on_mac, args, kwargs)
        if facts.body is not None and not self._simulation.closed:
            return self._inside(facts.body, args, kwargs)
        return func(*args, **kwargs)

    def _again(self) -> AbstractContextManager[object]:
        """Intercept the operators of a block although this handler is running."""
        bridge = self._state.bridge
        return bridge.again() if bridge is not None and bridge.is_open else seen_again()

    def _inside(self, body: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a Python kernel with both modes on, which this handler has off."""
        before, self._state.call = self._state.call, None
        try:
            with self._again(), FunctionMode(self._simulation, self._state):
                return body(*args, **kwargs)
        finally:
            self._state.call = before

    def _run(self, func: Any, facts: OpFacts, where: int, args: Any, kwargs: Any) -> Any:
        self._check(func, facts, where, args, kwargs)
        if facts.has_device:
            op_memory.foresee(self._simulation.memory, args, kwargs)
        result = self._compute(func, facts, args, kwargs)
        if facts.memory is not None:
            op_memory.charge(self._simulation, facts.memory, args, result)
        if facts.cpu_result is not None:
            self._tag([part for at, part in enumerate(result) if at != facts.cpu_result])
        elif facts.fresh:
            result = self._accepted(facts, result, kwargs)
            self._tag(result, any_shape=facts.name in _STRIDED)
        return result

    def _check(self, func: Any, facts: OpFacts, where: int, args: Any, kwargs: Any) -> None:
        """Raise what a Mac raises before it runs an operator."""
        if facts.gate is not None:
            facts.gate(args, kwargs)
        if where == BOTH and not facts.mixes:
            check_mix(func, args, kwargs, self._tags.has)

    def _accepted(self, facts: OpFacts, result: Any, kwargs: Any) -> Any:
        """Return a result in the dtype that the Mac would have."""
        return result.float() if _is_scratch(facts, result, kwargs) else result

    def _compute(self, func: Any, facts: OpFacts, args: Any, kwargs: dict[str, Any]) -> Any:
        try:
            return self._call(facts.kernel or func, facts, True, args, kwargs)
        except RuntimeError as error:
            op_memory.blame(self._simulation.memory, error)
            raise

    def _draw(self, func: Any, on_mac: bool, args: Any, kwargs: dict[str, Any]) -> Any:
        # C++ wraps a generator anew, so only the caller's arguments show which one was given.
        call = self._state.call
        given = None if call is None else call[1].get("generator")
        return self._simulation.randomness.run(func, on_mac, given, args, kwargs)

    def _tag(self, result: Any, *, any_shape: bool = False) -> None:
        if isinstance(result, torch.Tensor):
            if result.dtype in self._refused:
                raise self._simulation.rules.refusal(result.dtype) or TypeError(str(result.dtype))
            if result.dim() > _MOST_DIMENSIONS and not any_shape:
                raise RuntimeError(messages.too_many_dimensions(result.dim()))
            if result.layout is not torch.strided:
                self._simulation.rules.check_layout(result.layout)
            self._tags.add(result)
        elif isinstance(result, (list, tuple)):
            for part in result:
                self._tag(part)

    def _target(self, facts: OpFacts, where: int, kwargs: dict[str, Any]) -> bool:
        """Return whether the result belongs on the Mac; replace ``mps`` by the CPU."""
        if self._state.target is not None and facts.moves:
            return self._state.target.type == "mps"
        if kwargs.get("pin_memory"):
            self._unpin(kwargs)
        device = kwargs.get("device")
        if device is None:
            return bool(where & ON_MAC)
        if asks_mps(device) and not self._simulation.closed:
            kwargs["device"] = CPU
            return True
        return device.type == "cpu" and "pin_memory" not in kwargs and self._made_inside(where)

    def _unpin(self, kwargs: dict[str, Any]) -> None:
        if not self._simulation.pins:
            self._simulation.refuse(RuntimeError(PIN_ERROR), "pin_memory")
        kwargs["pin_memory"] = False

    def _made_inside(self, where: int) -> bool:
        """Return whether C++ code that works on mps tensors asked for a tensor "on the CPU".

        Such code copies the options of its arguments, which it sees on the CPU. A call from Python
        always has ``pin_memory``, one from C++ never does. Between calls from Python, autograd's
        engine runs C++ code on the device of its current node.
        """
        if where:
            return bool(where & ON_MAC)
        call = self._state.call
        if call is None:
            return runs_on_mac(self._tags, torch._C._current_autograd_node())
        args, kwargs = call
        return bool((self._scan(args) | self._scan(kwargs.values())) & ON_MAC)


def _is_scratch(facts: OpFacts, result: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether C++ made a float64 scalar of its own, which it would not on a Mac.

    ``linalg_pinv`` takes float32 for its tolerances on MPS and float64 elsewhere, and asks the
    device in C++ (get_atol_rtol in LinearAlgebra.cpp).
    """
    if not facts.has_device or facts.moves or "pin_memory" in kwargs:
        return False
    return result.dtype is torch.float64 and result.numel() <= 1


_enter: Any = TorchDispatchMode.__enter__
_exit: Any = TorchDispatchMode.__exit__
_make_wrapper: Any = torch.Tensor._make_wrapper_subclass
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


class Bridge(TorchDispatchMode):
    """The handler of one thread as a mode; off until needed."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types there
        self._dispatch = dispatch
        self._guard: Any = None
        self._users = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would wrap the handler and import all of dynamo at the first operator.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand the operator to the thread's handler; a subclass has to unwrap itself first."""
        if not all(kind in _PLAIN or kind.__name__ == "FakeTensor" for kind in types):
            return NotImplemented
        if func.namespace == "prim":  # a query about a subclass, unknown to the dispatcher
            return func(*args, **(kwargs or {}))
        return self._dispatch.answer(func, args, kwargs or {})

    @property
    def is_open(self) -> bool:
        """Whether the handler is on the stack of modes."""
        return self._guard is not None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Push the mode once more, while its own handler runs."""
        _enter(self)
        try:
            yield
        finally:
            _exit(self, None, None, None)

    def open(self) -> None:
        """Take the place of the dispatch key, until as many calls of ``leave``."""
        self._users += 1
        key = registered_key()
        if self._guard is None and key is not None:
            self._guard = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key))
            self._guard.__enter__()
            _enter(self)

    def leave(self) -> None:
        """Undo one ``open``."""
        self._users -= 1
        if not self._users:
            self.close()

    def close(self) -> None:
        """Go back behind the dispatch key."""
        if self._guard is not None:
            _exit(self, None, None, None)
            self._guard.__exit__(None, None, None)
            self._guard = None


def install(simulation: Simulation, patches: Patches) -> None:
    """Open the bridge of the thread whenever a mode or a subclass asks for it."""

    def enter(self: Any) -> Any:
        bridge = simulation.state().bridge
        if bridge is not None:
            bridge.open()
        return _enter(self)

    def leave(self: Any, *error: Any) -> Any:
        try:
            return _exit(self, *error)
        finally:  # an interrupt between the two would keep the bridge open
            bridge = simulation.state().bridge
            if bridge is not None:
                bridge.leave()

    def make_wrapper(*args: Any, **kwargs: Any) -> Any:
        bridge = simulation.state().bridge
        if bridge is not None:
            bridge.open()  # until the thread leaves, because the tensor may live that long
        return _make_wrapper(*args, **kwargs)

    patches.set(TorchDispatchMode, "__enter__", enter)
    patches.set(TorchDispatchMode, "__exit__", leave)
    patches.set(torch.Tensor, "_make_wrapper_subclass", staticmethod(make_wrapper))


@contextlib.contextmanager
def modes(simulation: Simulation) -> Iterator[None]:
    """Run the block with new layers on this thread."""
    state = ThreadState()
    dispatch = (simulation.handler or Dispatch)(simulation, state)
    before = simulation.enter_thread(state)
    try:
        with intercepting(dispatch), FunctionMode(simulation, state):
            state.bridge = Bridge(dispatch)
            try:
                yield
            finally:
                state.bridge.close()
    finally:
        simulation.enter_thread(before)
