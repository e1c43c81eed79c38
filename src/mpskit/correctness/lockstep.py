"""Runs one step so that another device can repeat it: modules are watched, random draws are kept.

A run on the reference keeps what its random operators drew; every other run gets the same numbers,
whatever device, dtype or operator (``bernoulli_`` on the CPU, ``native_dropout`` on MPS) asks.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit.correctness.comparing import exact_copy, map_args
from mpskit.dispatch.intercept import OutsideThread
from mpskit.dispatch.nested import tensors_of
from mpskit.dispatch.random_state import draw

__all__ = ["Draws", "OpCall", "Record", "Site", "Watch", "on_cpu", "run_step"]

_MASKS = frozenset({"bernoulli", "bernoulli_", "native_dropout"})
_DRAWS = _MASKS | frozenset(
    [
        "normal",
        "normal_",
        "uniform_",
        "exponential_",
        "random_",
        "cauchy_",
        "geometric_",
        "log_normal_",
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "multinomial",
        "poisson",
        "binomial",
        "_standard_gamma",
    ]
)
_core: Any = torch._C


class Site(NamedTuple):
    """One call of a module: its path (empty for the model) and how often it was called before."""

    module: str
    call: int


class OpCall(NamedTuple):
    """An operator as it is called: what runs it, and where."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: str
    backward: bool

    @property
    def name(self) -> str:
        """Return the name without namespace ``aten`` and overload."""
        name: str = self.func._schema.name
        return name.removeprefix("aten::")


@dataclass
class Record:
    """What one run left: copies on the CPU, in the order in which they came to be."""

    outputs: dict[Site, list[torch.Tensor]] = field(default_factory=dict)
    output_gradients: dict[Site, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    result: list[torch.Tensor] = field(default_factory=list)


class Draws:
    """The numbers that random operators drew, in order."""

    def __init__(self) -> None:
        self._kept: list[tuple[bool, torch.Tensor]] = []
        self._next = 0
        self._recording = True
        self._generator = torch.Generator().manual_seed(0)
        self.unmatched = 0

    def rewind(self) -> None:
        """Give what was drawn again, from the first."""
        self._next, self._recording = 0, False
        self._generator = torch.Generator().manual_seed(1)

    def answer(self, call: OpCall) -> Any:
        """Return the result of a random operator on the device of its arguments."""
        if call.name == "native_dropout":
            return self._dropout(call)
        numbers = self._numbers(call)
        target = call.args[0] if call.args and isinstance(call.args[0], torch.Tensor) else None
        if call.name.endswith("_") and target is not None:
            return target.copy_(numbers.to(target.dtype))
        device = target.device if target is not None else call.kwargs.get("device")
        return numbers.to(device or "cpu")

    def _dropout(self, call: OpCall) -> Any:
        values, p, train = call.args
        if train is False or p <= 0 or p >= 1:
            return call.func(*call.args, **call.kwargs)
        mask = self._numbers(call).to(values.device, torch.bool)
        return values * mask.to(values.dtype) * (1 / (1 - p)), mask

    def _numbers(self, call: OpCall) -> torch.Tensor:
        mask = call.name in _MASKS
        drawn = None
        if not self._recording and self._next < len(self._kept):
            kind, drawn = self._kept[self._next]
            shape = _shape(call)
            if kind is not mask or (shape is not None and shape != drawn.shape):
                drawn = None
            self._next += 1
        if drawn is None:
            drawn = self._draw(call)
            if self._recording:
                self._kept.append((mask, drawn))
            else:
                self.unmatched += 1
        return drawn

    def _draw(self, call: OpCall) -> torch.Tensor:
        args, kwargs = map_args(call.args, exact_copy), map_args(call.kwargs, exact_copy)
        kwargs = {k: torch.device("cpu") if k == "device" else v for k, v in kwargs.items()}
        kwargs.pop("generator", None)
        func = call.func
        if call.name == "native_dropout":
            keep = torch.empty(args[0].shape, dtype=args[0].dtype)
            func, args, kwargs = torch.ops.aten.bernoulli_.float, (keep, 1 - args[1]), {}
        result = on_cpu(lambda: draw(self._generator, func, args, kwargs))
        drawn: torch.Tensor = result[1] if isinstance(result, tuple) else result
        return drawn.clone()


def on_cpu(call: Callable[[], Any]) -> Any:
    """Return what a call on CPU tensors returns, on a thread where nothing else is in force.

    Inside an operator that a simulated Mac runs, new tensors count as that operator's own.
    """
    answer: list[Any] = []

    def run() -> None:
        try:
            with torch.no_grad():
                answer.append(call())
        except BaseException as error:  # noqa: BLE001 - raised on the thread that asked
            answer.append(error)

    thread = OutsideThread(target=run, daemon=True)
    thread.start()
    thread.join()
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


def _shape(call: OpCall) -> torch.Size | None:
    """Return the shape of what is drawn, where the first argument has it."""
    first = call.args[0] if call.args else None
    if not isinstance(first, torch.Tensor) or call.name in ("multinomial", "normal"):
        return None
    return first.shape


Check = Callable[[OpCall, Callable[[], Any]], Any]


class Watch(TorchDispatchMode):
    """Sees every operator of a run: gives random ones their numbers and lets others be checked.

    Args:
        model: whose modules are followed.
        draws: the numbers of random operators.
        lift: whether every floating-point tensor that is made becomes float64.
        check: gets each operator that computes, and runs it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        draws: Draws,
        *,
        lift: bool = False,
        check: Check | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types there
        self.record = Record()
        self._draws, self._lift, self._check = draws, lift, check
        self._stack: list[str] = [""]
        self._entered: list[tuple[int, str]] = [(0, "")]
        self._calls: dict[str, int] = {}
        self._paused = False
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._enter_module(name))
            module.register_forward_hook(self._leave_module(name), always_call=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @property
    def module(self) -> str:
        """The path of the module whose operator runs; in backward, of the one that recorded it."""
        node = _core._current_autograd_node()
        if node is None:
            return self._stack[-1]
        at = bisect_right(self._entered, node._sequence_nr(), key=lambda entry: entry[0])
        return self._entered[max(at - 1, 0)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one operator."""
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if self._lift:
            kwargs = _wider(kwargs)
        backward = _core._current_autograd_node() is not None
        call = OpCall(func, args, kwargs, self.module, backward)
        if call.name in _DRAWS and func.namespace == "aten":
            result = self._draws.answer(call)
        elif self._check is not None:
            result = self._check(call, lambda: func(*args, **kwargs))
        else:
            result = func(*args, **kwargs)
        made = self._lift and any(a.name == "device" for a in func._schema.arguments)
        return (
            map_args(result, _widened) if made or (self._lift and call.name in _DRAWS) else result
        )

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let the operators of a block run as if nobody watched."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _note(self, path: str) -> None:
        self._entered.append((_core._autograd._get_sequence_nr(), path))

    def _enter_module(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._stack.append(name)
            self._note(name)

        return enter

    def _leave_module(self, name: str) -> Callable[..., None]:
        def leave(_module: Any, _args: Any, output: Any) -> None:
            if self._stack[-1] == name:
                self._stack.pop()
            self._note(self._stack[-1])
            site = Site(name, self._calls.get(name, 0))
            self._calls[name] = site.call + 1
            floats = [t for t in tensors_of(output) if t.is_floating_point()]
            with self.unwatched():
                self.record.outputs[site] = [exact_copy(t) for t in floats]
            if floats and floats[0].requires_grad:
                floats[0].register_hook(self._kept_gradient(site))

        return leave

    def _kept_gradient(self, site: Site) -> Callable[[torch.Tensor], None]:
        def keep(gradient: torch.Tensor) -> None:
            with self.unwatched():
                self.record.output_gradients[site] = exact_copy(gradient)

        return keep


def _wider(kwargs: dict[str, Any]) -> dict[str, Any]:
    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return {**kwargs, "dtype": torch.float64}
    return kwargs


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    narrow = tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.double() if narrow else tensor


def run_step(
    watch: Watch,
    model: torch.nn.Module,
    step: Callable[[torch.nn.Module, Any], Any],
    batch: Any,
    *,
    train: bool,
    whole: bool = False,
) -> Record:
    """Run a step, and its backward pass if it trains; return what it left.

    Args:
        watch: sees the run.
        model: on its device.
        step: ``(model, batch)``; what it returns is the loss, unless it has left gradients.
        batch: on the same device.
        train: whether gradients are computed.
        whole: the step may update the parameters, which then count among its results.
    """
    with torch.set_grad_enabled(train), watch:
        result = step(model, batch)
        loss = next((t for t in tensors_of(result) if t.requires_grad), None)
        if train and loss is not None and all(p.grad is None for p in model.parameters()):
            (loss if loss.numel() == 1 else loss.float().mean()).backward()
    record = watch.record
    left = list(model.parameters()) if whole else []
    record.result = [exact_copy(t) for t in [*tensors_of(result), *left]]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            record.gradients[name] = exact_copy(parameter.grad)
    return record
