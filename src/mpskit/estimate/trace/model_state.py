"""Exchanges a model's memory for unbacked tensors, and puts everything back.

By storage: tied and flattened parameters stay tied. The module objects, the Parameter objects,
their hooks and every name stay the same ones, so a user's step and optimizer find what they know.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import unbacked_storage
from mpskit.estimate.trace.storage_log import Ledger

__all__ = ["kept_random_state", "swapped"]

# Integer and boolean buffers up to this size keep their values: counters and flags that a
# forward pass may look at.
_KEPT_NUMEL = 4096


@contextlib.contextmanager
def swapped(model: torch.nn.Module, ledger: Ledger, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the model's tensors have no memory; after, everything is as it was.

    Args:
        model: any module; it may lie on any device, ``meta`` included.
        ledger: where the new storages are recorded, by kind.
        dtype: what floating-point parameters and buffers become; None leaves them.
    """
    modules = list(model.modules())
    kept = [_Kept(module) for module in modules]
    swap = _Swap(ledger, dtype)
    try:
        for module in modules:
            swap.module(module)
        yield
    finally:
        swap.undo()
        for state in kept:
            state.restore()


class _Kept:
    """One module's attributes, the containers among them copied one level deep."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.inner = [
            (value, value.copy()) for value in self.attributes.values() if type(value) in _MUTABLE
        ]

    def restore(self) -> None:
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for value, copy in self.inner:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(copy)


class _Swap:
    """The exchange itself: one unbacked storage for each storage that the model holds."""

    def __init__(self, ledger: Ledger, dtype: torch.dtype | None) -> None:
        self.ledger = ledger
        self.dtype = dtype
        self._storages: dict[tuple[int, Any], torch.UntypedStorage] = {}
        self._replaced: dict[int, torch.Tensor] = {}
        self._undo: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

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

    def undo(self) -> None:
        """Give every tensor its memory and its gradient back."""
        for tensor, data, grad in reversed(self._undo):
            tensor.grad = None
            tensor.data = data
            tensor.grad = grad

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
            grad, tensor.grad = tensor.grad, None
            self._undo.append((tensor, tensor.data, grad))
            tensor.data = twin
            twin = tensor
        self._replaced[id(tensor)] = twin
        return twin

    def _twin(self, tensor: torch.Tensor, kind: str) -> torch.Tensor:
        """Return an unbacked tensor of the same layout; what shared storage shares it again."""
        if kind == "buffers" and _keeps_values(tensor):
            twin = tensor.detach().to("cpu", copy=True)
            self.ledger.add(twin.untyped_storage(), kind)
            return twin
        dtype = self.dtype if self.dtype and tensor.is_floating_point() else tensor.dtype
        source = tensor.untyped_storage()
        storage = self._storages.get((source._cdata, dtype))
        if storage is None:
            nbytes = source.nbytes() // tensor.itemsize * dtype.itemsize
            storage = self._storages[source._cdata, dtype] = unbacked_storage(nbytes)
            self.ledger.add(storage, kind)
        empty = torch.empty(0, dtype=dtype, device="cpu")
        return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def _keep_attribute(self, tensor: torch.Tensor) -> None:
        """A tensor that is a plain attribute lives too."""
        if tensor.layout is torch.strided and tensor.device.type == "cpu":
            self.ledger.add(tensor.untyped_storage(), "buffers")


def _keeps_values(tensor: torch.Tensor) -> bool:
    plain = not tensor.is_floating_point() and not tensor.is_complex()
    return plain and tensor.numel() <= _KEPT_NUMEL and tensor.device.type != "meta"


_MUTABLE = {dict, list, set, type(torch.nn.Module()._forward_hooks)}


@contextlib.contextmanager
def kept_random_state(seed: int = 0) -> Iterator[None]:
    """Draw from fixed seeds inside; give every generator its state back after."""
    numpy = sys.modules.get("numpy")
    ours, theirs = torch.get_rng_state(), random.getstate()
    arrays = numpy.random.get_state() if numpy else None
    try:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed)
        yield
    finally:
        torch.set_rng_state(ours)
        random.setstate(theirs)
        if numpy:
            numpy.random.set_state(arrays)
