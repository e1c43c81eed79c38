"""Layer 3, the function mode: calls that fail in C++ before any dispatch, and autocast.

Functions that make a tensor from Python data refuse ``device="mps"`` in C++ at once: each is called
for the CPU, and its result is moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils import _device

from mpskit.dispatch.autocast import is_on
from mpskit.simulation.core import CPU, MPS, Simulation, ThreadState, asks_mps, device_of
from mpskit.simulation.device_mismatch import check_linear
from mpskit.simulation.tensor_patches import move

__all__ = ["CONSTRUCTORS", "FunctionMode"]


Constructor = Callable[[Simulation, Any, tuple[Any, ...], dict[str, Any]], Any]


def _build(simulation: Simulation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``torch.tensor`` and its like: the device is an argument, the default, or the data's."""
    device = kwargs.get("device") or _device.CURRENT_DEVICE
    if device is None and args and isinstance(args[0], torch.Tensor):
        device = args[0].device
    if not asks_mps(device):
        return func(*args, **kwargs)
    return _moved(simulation, func, args, kwargs)


def _like_self(
    simulation: Simulation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``Tensor.new_tensor``: the device is an argument or the tensor's own."""
    if asks_mps(kwargs.get("device") or args[0].device):
        return _moved(simulation, func, args, kwargs)
    return func(*args, **kwargs)


def _moved(simulation: Simulation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    data = args[1] if func is torch.Tensor.new_tensor else args[0] if args else None
    if isinstance(data, torch.Tensor) and simulation.tags.has(data):
        return _from_tensor(func, data, kwargs)
    kwargs = kwargs | {"device": CPU}
    requires_grad = kwargs.pop("requires_grad", False)
    made = move(simulation, func(*args, **kwargs), MPS)
    return made.requires_grad_() if requires_grad else made


def _build_sparse(
    simulation: Simulation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A sparse tensor of parts: the device is an argument, the default, or the parts' own."""
    parts = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
    device = kwargs.get("device") or _device.CURRENT_DEVICE
    if not asks_mps(device or (parts[-1].device if parts else None)):
        return func(*args, **kwargs)
    if func is torch.sparse_coo_tensor:
        simulation.rules.check_layout(torch.sparse_coo, "_sparse_coo_tensor_with_dims_and_tensors")
    args = tuple(_on_cpu(part) for part in args)
    return _moved(simulation, func, args, {name: _on_cpu(kwargs[name]) for name in kwargs})


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _from_tensor(func: Any, data: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """Make a tensor from data on the Mac already; only ``as_tensor`` and the like share storage."""
    if func in {torch.as_tensor, torch.asarray}:
        return data.to(dtype=kwargs.get("dtype"), copy=bool(kwargs.get("copy")))
    copy = data.detach().to(dtype=kwargs.get("dtype"), copy=True)
    return copy.requires_grad_(kwargs.get("requires_grad", False))


def _by_index(
    simulation: Simulation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``torch.device(0)`` and ``Module.to(0)``: C++ looks for an accelerator that is not there."""
    if simulation.usable and args:
        args = (device_of(args[0]), *args[1:])
    return func(*args, **kwargs)


CONSTRUCTORS: dict[Any, Constructor] = dict.fromkeys(
    (
        torch.tensor,
        torch.as_tensor,
        torch.asarray,
    ),
    _build,
)
CONSTRUCTORS |= dict.fromkeys(
    (
        torch.sparse_coo_tensor,
        torch.sparse_compressed_tensor,
        torch.sparse_csr_tensor,
        torch.sparse_csc_tensor,
        torch.sparse_bsr_tensor,
        torch.sparse_bsc_tensor,
    ),
    _build_sparse,
)
CONSTRUCTORS[torch.Tensor.new_tensor] = _like_self
_c: Any = torch._C
CONSTRUCTORS |= dict.fromkeys((torch.device, _c._nn._parse_to), _by_index)


_LINEAR = torch.nn.functional.linear
_TENSORS: frozenset[Any] = frozenset({torch.Tensor, torch.nn.Parameter})


class FunctionMode(TorchFunctionMode):
    """The function mode of one thread; it has state, so every thread has its own."""

    def __init__(self, simulation: Simulation, state: ThreadState) -> None:
        super().__init__()
        self._simulation = simulation
        self._state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one C++ function, remembering what it was called with."""
        kwargs = kwargs or {}
        if kwargs and type(kwargs.get("device")) is int and self._simulation.usable:
            kwargs = {**kwargs, "device": device_of(kwargs["device"])}
        if func in CONSTRUCTORS and not self._simulation.closed:
            return CONSTRUCTORS[func](self._simulation, func, args, kwargs)
        if func is _LINEAR:
            self._check_linear(args, kwargs)
        if is_on():
            args, kwargs = self._simulation.autocast.apply(func, args, kwargs)
        for value in args:
            if type(value) in _TENSORS and value.requires_grad and not value.dim():
                args = self._moved_scalars(args)
                break
        state = self._state
        before = state.call
        if not _is_handed_on(func, args):
            state.call = (args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            state.call = before

    def _check_linear(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            check_linear(self._simulation.tags.has, args, kwargs)
        except RuntimeError as error:
            self._simulation.refuse(error, "linear")

    def _moved_scalars(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Move CPU scalars that need a gradient, so that the gradient returns to the CPU.

        Torch's engine does so on a Mac; here it sees only one device.
        """
        has = self._simulation.tags.has
        tensors = [value for value in args if type(value) in _TENSORS]
        if not any(has(value) and value.dim() for value in tensors):
            return args
        alone = {id(t) for t in tensors if t.requires_grad and not t.dim() and not has(t)}
        return tuple(
            move(self._simulation, value, MPS) if id(value) in alone else value for value in args
        )


def _is_handed_on(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a dispatch mode calls a factory for whoever called it first.

    That may be C++ in autograd's engine, whose call belongs to its node.
    """
    return type(func) is OpOverload and not any(isinstance(v, torch.Tensor) for v in args)
