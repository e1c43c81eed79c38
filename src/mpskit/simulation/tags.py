"""Tags of the storages that count as on ``mps:0``, with the memory charged for each.

A tensor's data is on the CPU; its storage is *tagged* for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from mpskit.dispatch.storage_lifetime import LiveStorages, StorageRef

if TYPE_CHECKING:
    from mpskit.simulation.memory import Memory

__all__ = ["BOTH", "ON_CPU", "ON_MAC", "Scan", "Tags", "address_of", "scanner"]


# The C++ storage's address. Unlike Tensor.untyped_storage it cannot be overridden, so function
# modes do not see it; without a storage it raises NotImplementedError.
_c: Any = torch._C
address_of: Callable[[torch.Tensor], int] = _c._storage_address
_storage_of = torch._C.TensorBase.untyped_storage
_nbytes: Callable[[Any], int] = _c.StorageBase.nbytes
_SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


class Tags:
    """The tagged storages, keyed by the address of the C++ storage, with their blocks."""

    def __init__(self, memory: Memory) -> None:
        self.live = LiveStorages(self._release)
        self._memory = memory

    def has(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is on the simulated device."""
        try:
            return address_of(tensor) in self.live
        except NotImplementedError:
            return any(self.has(part) for part in _parts(tensor))

    def entry(self, tensor: torch.Tensor) -> int | None:
        """Return the block of a tensor's storage; None where it has none, or is not tagged."""
        try:
            tag = self.live.get(address_of(tensor))
        except NotImplementedError:
            return None
        return None if tag is None else tag.entry

    def add(self, tensor: torch.Tensor, size: int | None = None) -> None:
        """Tag a tensor's storage and charge it, unless it is tagged already.

        Args:
            tensor: strided, sparse, or wrapped by a functorch transform.
            size: bytes to charge; by default those of the storage.

        Raises:
            RuntimeError: the simulated memory is full; torch's own text.
        """
        try:
            known = address_of(tensor) in self.live
        except NotImplementedError:
            for part in _parts(tensor):
                self.add(part)
            return
        if not known:
            self.add_storage(_storage_of(tensor), size)

    def add_storage(self, storage: torch.UntypedStorage, size: int | None = None) -> None:
        """Tag a storage that is not tagged yet and charge it."""
        self.live.add(storage, self._memory.charge(_nbytes(storage) if size is None else size))

    def recharge(self, storage: torch.UntypedStorage) -> None:
        """Charge a tagged storage anew after its size changed; nothing for an untagged one."""
        tag = self.live.get(storage._cdata)
        if tag is not None:
            self._release(tag)
            tag.entry = self._memory.charge(_nbytes(storage))

    def clear(self) -> None:
        """Forget every tag: the tensors that are left are plain CPU tensors from now on."""
        self.live.clear()

    def _release(self, tag: StorageRef) -> None:
        block, tag.entry = tag.entry, None
        if block is not None:
            self._memory.release(block)


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors that hold a sparse or wrapped tensor's data."""
    if _c._functorch.is_functorch_wrapped_tensor(tensor):
        return (_c._functorch.get_unwrapped(tensor),)
    names = _SPARSE_PARTS.get(tensor.layout, ())
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        return tuple(getattr(tensor, name)() for name in names)


ON_MAC = 1
ON_CPU = 2
BOTH = ON_MAC | ON_CPU

Scan = Callable[[Iterable[Any]], int]


def scanner(tags: Tags) -> Scan:
    """Return a function that gives the devices of the tensors among some values, as a bit set.

    Zero-dimensional CPU tensors do not count, because they combine with any device. This runs for
    every operator, so it reads the table of tags directly and searches only lists that it meets.
    """
    live, has, tensor_class = tags.live, tags.has, torch.Tensor
    address, dimensions = address_of, torch.Tensor.dim

    def scan(values: Iterable[Any]) -> int:
        found = 0
        for value in values:
            if isinstance(value, tensor_class):
                try:
                    tagged = address(value) in live
                except NotImplementedError:
                    tagged = has(value)
                if tagged:
                    found |= ON_MAC
                elif dimensions(value):
                    found |= ON_CPU
            elif isinstance(value, (list, tuple)):
                found |= scan(value)
        return found

    return scan
