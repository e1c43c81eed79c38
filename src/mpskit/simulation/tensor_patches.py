"""Layer 1: patched attributes of ``torch.Tensor``, for every thread and mode, and device moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter

from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import CPU, MPS, Simulation, asks_mps, device_of
from mpskit.simulation.tags import address_of

__all__ = ["install", "move"]

_base = torch._C.TensorBase
_raw_device: Callable[[torch.Tensor], torch.device] = _base.device.__get__
_raw_to = _base.to
_CPU_OR_MPS = frozenset({"cpu", "mps"})
_LIST = "_allowed_methods"


def install(simulation: Simulation, patches: Patches) -> None:
    """Patch the simulated attributes onto the tensor class."""
    has = simulation.tags.has
    attributes = {
        "device": property(_device_getter(simulation)),
        "is_mps": property(lambda self: self.device.type == "mps"),
        "is_cpu": property(lambda self: self.device.type == "cpu"),
        "get_device": _get_device,
        "to": _mover(simulation),
        "cpu": _to_cpu,
        "copy_": _copier(),
        "type": _typer(has),
        "numpy": _numpy(simulation),
    }
    # A lazy module's parameters allow a list of functions, kept by identity.
    lazy: Any = next(kind for kind in UninitializedParameter.__mro__ if _LIST in vars(kind))
    allowed = list(lazy._allowed_methods)
    for name, value in attributes.items():
        if getattr(torch.Tensor, name) in allowed:
            allowed.append(value)
        patches.set(torch.Tensor, name, value)
    patches.set(lazy, _LIST, allowed)


def _device_getter(simulation: Simulation) -> Callable[[torch.Tensor], torch.device]:
    live, has = simulation.tags.live, simulation.tags.has

    def device(self: torch.Tensor) -> torch.device:
        # First the tag: under a function mode the raw getter comes back here with the mode off.
        try:
            tagged = address_of(self) in live
        except NotImplementedError:
            tagged = has(self)
        return MPS if tagged else _raw_device(self)

    return device


def _get_device(self: torch.Tensor) -> int:
    index: int | None = self.device.index
    return -1 if index is None else index


def _to_cpu(self: torch.Tensor, memory_format: Any = torch.preserve_format) -> torch.Tensor:
    return self.to(CPU, memory_format=memory_format)


def _numpy(simulation: Simulation) -> Callable[..., Any]:
    def numpy(self: torch.Tensor, *, force: bool = False) -> Any:
        if not simulation.tags.has(self):
            return _base.numpy(self, force=force)
        if not force:
            text = (
                "can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
            simulation.refuse(TypeError(text), "numpy")
        return self.detach().cpu().resolve_conj().resolve_neg().numpy()

    return numpy


def _typer(has: Callable[[torch.Tensor], bool]) -> Callable[..., Any]:
    def type_(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
        if dtype is None:
            # Under a function mode torch calls this again for the name, with the mode off.
            name = _base.type(self)
            plain = name.replace("torch.mps.", "torch.")
            return plain.replace("torch.", "torch.mps.", 1) if has(self) else plain
        if isinstance(dtype, torch.dtype):
            return self.to(dtype)
        return _by_name(self, dtype, non_blocking)

    type_.__name__ = "type"
    return type_


def _by_name(tensor: torch.Tensor, kind: Any, non_blocking: bool) -> torch.Tensor:
    """Convert to a type such as ``torch.FloatTensor``, which names a device too."""
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    if name.startswith("torch.mps."):
        plain = name.replace("torch.mps.", "torch.")
        return tensor.to(device=MPS, dtype=torch.empty(0, device=CPU).type(plain).dtype)
    on_cpu = tensor.to(CPU)
    converted: torch.Tensor = _base.type(on_cpu, kind, non_blocking)
    return converted


def _copier() -> Callable[..., torch.Tensor]:
    """Let the gradient of ``x.copy_(y)`` return to the device of ``y``."""
    raw = _base.copy_

    def copy_(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if other.requires_grad and torch.is_grad_enabled() and self.device != other.device:
            other = other.to(self.device)
        return raw(self, other, non_blocking)

    return copy_


def _mover(simulation: Simulation) -> Callable[..., torch.Tensor]:
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, options = _parse(args, kwargs)
        if device is None or device.type not in _CPU_OR_MPS:
            return _raw_to(self, *args, **kwargs)
        on_mac = simulation.tags.has(self)
        if not on_mac and _raw_device(self).type != "cpu":
            return _raw_to(self, CPU, dtype, **options)
        if asks_mps(device) == on_mac:
            return _raw_to(self, dtype=dtype or self.dtype, **options)
        memory_format = options.get("memory_format")
        moved = move(simulation, self, device, dtype=dtype, memory_format=memory_format)
        return moved if type(self) in _PLAIN else _of_class(moved, type(self))

    return to


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def _of_class(tensor: torch.Tensor, kind: type[torch.Tensor]) -> torch.Tensor:
    """Return a tensor as the subclass that torch's own ``__torch_function__`` would make of it."""
    if kind.__torch_function__ is torch._C._disabled_torch_function_impl:
        return tensor
    return tensor.as_subclass(kind)


def _parse(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, torch.dtype | None, dict[str, Any]]:
    """Return device, dtype and the rest of what ``Tensor.to`` was given."""
    given = dict(kwargs)
    names = ("device", "dtype", "non_blocking", "copy")
    if args and isinstance(args[0], torch.Tensor):
        given |= {"other": args[0], **dict(zip(names[2:], args[1:], strict=False))}
    elif args and isinstance(args[0], torch.dtype):
        given |= dict(zip(names[1:], args, strict=False))
    else:
        given |= dict(zip(names, args, strict=False))
    other = given.pop("other", None)
    if other is not None:
        given |= {"device": other.device, "dtype": other.dtype}
    device, dtype = given.pop("device", None), given.pop("dtype", None)
    return (None if device is None else torch.device(device_of(device))), dtype, given


_to_copy = torch.ops.aten._to_copy.default


def move(
    simulation: Simulation,
    tensor: torch.Tensor,
    target: torch.device,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """Return a copy on the other device; the gradient returns to this one."""
    if tensor.requires_grad and torch.is_grad_enabled():
        moved: torch.Tensor = _Move.apply(tensor, simulation, target, dtype, memory_format)  # type: ignore[no-untyped-call]
        return moved
    return _copy(simulation, tensor, target, dtype, memory_format)


def _copy(
    simulation: Simulation,
    tensor: torch.Tensor,
    target: torch.device,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format | None,
) -> torch.Tensor:
    state = simulation.state()
    state.target = target
    try:
        # A subclass decides about .to(), not about the copy below it (UninitializedParameter).
        with torch._C.DisableTorchFunctionSubclass():
            copy: torch.Tensor = _to_copy(tensor, dtype=dtype, memory_format=memory_format)
    finally:
        state.target = None
    return copy


class _Move(torch.autograd.Function):
    """A differentiable move: torch sees a copy from CPU to CPU, so backward moves the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        simulation: Simulation,
        target: torch.device,
        dtype: torch.dtype | None,
        memory_format: torch.memory_format | None,
    ) -> torch.Tensor:
        ctx.simulation = simulation
        ctx.origin = MPS if target.type == "cpu" else CPU
        ctx.dtype = tensor.dtype
        return _copy(simulation, tensor, target, dtype, memory_format)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = move(ctx.simulation, gradients[0], ctx.origin, dtype=ctx.dtype)
        return gradient, None, None, None, None
