"""Exchanges a model's memory for data-less tensors, and puts everything back.

By storage: tied and flattened parameters stay tied. The module objects, the Parameter objects,
their hooks and every name stay the same ones, so a user's step and optimizer find what they know.
That is why a model can be under exchange for one trace only: a second one is refused.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from mpskit._base.locks import run_locked
from mpskit.dispatch.dataless_tensors import dataless_storage
from mpskit.dispatch.patches import Patches
from mpskit.errors import EstimateError
from mpskit.estimate.trace.storage_log import StorageLog

__all__ = ["claim", "exchange", "keep_attributes"]

# Integer and boolean buffers up to this size keep their values: counters and flags that a
# forward pass may look at.
_KEPT_NUMEL = 4096

_LOCK = threading.Lock()
_claimed: dict[int, str] = {}  # id -> name of the thread that traces it


def claim(patches: Patches, what: str, parts: Iterable[object]) -> None:
    """Reserve objects for one trace, all of them or none.

    Raises:
        EstimateError: another trace has one of them under exchange.
    """
    ids = {id(part) for part in parts}
    mine: set[int] = set()
    patches.on_exit(lambda: [_claimed.pop(mine.pop(), None) for _ in tuple(mine)])

    def reserve() -> None:
        for thread in (_claimed[part] for part in ids & _claimed.keys()):
            raise EstimateError(
                f"{what}, or a part of it, is being estimated already on thread {thread}: its "
                "memory is exchanged until that is done. Wait for it, or give each thread a model "
                "and an optimizer of its own",
                given=what,
            )
        mine.update(ids)
        _claimed.update(dict.fromkeys(ids, threading.current_thread().name))

    run_locked(_LOCK, reserve, None)


def exchange(
    patches: Patches, model: torch.nn.Module, log: StorageLog, dtype: torch.dtype | None
) -> None:
    """Take the memory of a model's tensors away until ``patches`` are undone.

    Args:
        patches: puts everything back.
        model: any module; it may lie on any device, ``meta`` included.
        log: where the new storages are recorded, by kind.
        dtype: what floating-point parameters and buffers become; None leaves them.

    Raises:
        EstimateError: another trace has the model or a part of it under exchange.
    """
    modules = list(dict.fromkeys(_as_moved(model)))
    claim(patches, type(model).__name__, [*modules, *model.parameters(), *model.buffers()])
    for module in modules:
        keep_attributes(patches, module)
    exchanged = _Exchange(patches, log, dtype)
    for module in modules:
        exchanged.module(module)


def _as_moved(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the modules in the order in which ``Module.to`` moves them: children first.

    What an allocator has in its heaps rests on the order.
    """
    for child in module.children():
        yield from _as_moved(child)
    yield module


def keep_attributes(patches: Patches, owner: object) -> None:
    """Give a module, parameter or optimizer its attributes back once ``patches`` are undone.

    Containers among them are filled again with what they held, one level deep.
    """
    patches.on_exit(_Kept(owner).restore)


class _Kept:
    """The attributes of one object, the containers among them copied one level deep."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.attributes = dict(vars(owner))
        self.inner = [
            (value, value.copy()) for value in self.attributes.values() if type(value) in _MUTABLE
        ]

    def restore(self) -> None:
        attributes = vars(self.owner)
        for name in attributes.keys() - self.attributes.keys():
            del attributes[name]
        attributes.update(self.attributes)
        for value, copy in self.inner:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(copy)


class _Exchange:
    """The exchange itself: one data-less storage for each storage that the model holds."""

    def __init__(self, patches: Patches, log: StorageLog, dtype: torch.dtype | None) -> None:
        self.patches = patches
        self.log = log
        self.dtype = dtype
        self._storages: dict[tuple[int, Any], torch.UntypedStorage] = {}
        self._replaced: dict[int, torch.Tensor] = {}

    def module(self, module: torch.nn.Module) -> None:
        """Exchange what one module holds itself."""
        for name, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[name] = self._exchange(value, "parameters")  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = self._exchange(buffer, "buffers")
        for value in list(vars(module).values()):
            for tensor in value if type(value) in {list, tuple} else (value,):
                if isinstance(tensor, torch.Tensor):
                    self._keep_attribute(tensor)

    def _exchange(self, tensor: torch.Tensor, kind: str) -> torch.Tensor:
        found = self._replaced.get(id(tensor))
        if found is not None:
            return found
        if tensor.layout is not torch.strided:
            return tensor
        twin = self._twin(tensor, kind)
        if tensor.device.type == "meta":
            # A meta tensor cannot take a CPU tensor's data: another object stands in for it.
            if isinstance(tensor, torch.nn.Parameter):
                twin = torch.nn.Parameter(twin, requires_grad=tensor.requires_grad)
        else:
            keep_attributes(self.patches, tensor)
            kept = (tensor.data, tensor.grad, tensor.requires_grad, _hooks(tensor))
            self.patches.on_exit(functools.partial(_give_back, tensor, *kept))
            tensor.grad = None
            tensor.data = twin
            twin = tensor
        self._replaced[id(tensor)] = twin
        return twin

    def _twin(self, tensor: torch.Tensor, kind: str) -> torch.Tensor:
        """Return a data-less tensor of the same layout; what shared storage shares it again."""
        if kind == "buffers" and _keeps_values(tensor):
            twin = tensor.detach().to("cpu", copy=True)
            self.log.add(twin.untyped_storage(), kind)
            return twin
        dtype = self.dtype if self.dtype and tensor.is_floating_point() else tensor.dtype
        source = tensor.untyped_storage()
        storage = self._storages.get((source._cdata, dtype))
        if storage is None:
            nbytes = source.nbytes() // tensor.itemsize * dtype.itemsize
            storage = self._storages[source._cdata, dtype] = dataless_storage(nbytes)
            self.log.add(storage, kind)
        empty = torch.empty(0, dtype=dtype, device="cpu")
        return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def _keep_attribute(self, tensor: torch.Tensor) -> None:
        """A tensor that is a plain attribute lives too."""
        if tensor.layout is torch.strided and tensor.device.type == "cpu":
            self.log.add(tensor.untyped_storage(), "buffers")


# Where a tensor keeps the hooks of its gradient.
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _hooks(tensor: torch.Tensor) -> dict[str, Any]:
    held = {name: getattr(tensor, name, None) for name in _HOOKS}
    return {name: hooks and hooks.copy() for name, hooks in held.items()}


def _give_back(
    tensor: torch.Tensor,
    data: torch.Tensor,
    grad: torch.Tensor | None,
    requires_grad: bool,
    hooks: dict[str, Any],
) -> None:
    tensor.grad = None
    tensor.data = data
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    tensor.grad = grad
    for name, before in hooks.items():
        if getattr(tensor, name, None) != before:
            setattr(tensor, name, before)


def _keeps_values(tensor: torch.Tensor) -> bool:
    plain = not tensor.is_floating_point() and not tensor.is_complex()
    return plain and tensor.numel() <= _KEPT_NUMEL and tensor.device.type != "meta"


_MUTABLE = {dict, list, set, type(torch.nn.Module()._forward_hooks)}
