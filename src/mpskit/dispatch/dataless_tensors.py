"""Data-less tensors: real CPU tensors to torch, without memory behind them.

torch's own fake tensors are a subclass: each operator on one goes through Python several times,
composite operators see another device than the one that counts, and autograd aborts the process on
a device that the build lacks. A data-less tensor is a plain CPU tensor whose storage points into a
reserved, never written range of addresses: autograd, autocast and every composite operator treat it
as an ordinary one, and only kernels must not touch it (a tracer sees to that). A kernel that still
reads it finds zeros instead of crashing.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch

from mpskit._base.sizes import GIB, MIB

__all__ = ["dataless_storage", "dataless_tensor", "is_dataless"]

# Reserved, not committed: the first size that the system grants.
_RANGES = (1024 * GIB, 64 * GIB, 4 * GIB, 256 * MIB)
# Linux; the constant has no name in Python's mmap before 3.13 or so. Others ignore the bit or
# do not need it, because they commit nothing before the first write.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_STRIDE = 4096


def _addresses() -> tuple[int, int, mmap.mmap]:
    """Reserve the range once per process: its first address, its end, and its owner."""
    if not _RESERVED:
        with _RESERVING:
            if not _RESERVED:
                _RESERVED.append(_range())
    return _RESERVED[0]


_RESERVED: list[tuple[int, int, mmap.mmap]] = []
_RESERVING = threading.Lock()


def _range() -> tuple[int, int, mmap.mmap]:
    for size in _RANGES:
        try:
            owner = _reserve(size)
        except (OSError, OverflowError, ValueError):
            continue
        start = ctypes.addressof(ctypes.c_char.from_buffer(owner))
        return start, start + size, owner
    raise MemoryError("not even 256 MiB of addresses can be reserved")


def _reserve(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, min(size, 256 * MIB))
    # Linux counts private writable addresses as data, against limit_memory()'s RLIMIT_DATA.
    sharing = mmap.MAP_SHARED if sys.platform == "linux" else mmap.MAP_PRIVATE
    flags = sharing | mmap.MAP_ANONYMOUS | _NO_RESERVE
    return mmap.mmap(-1, size, flags=flags)


# Storages begin at distinct addresses, because some code compares ``data_ptr``.
_numbers = itertools.count()


def dataless_storage(nbytes: int) -> torch.UntypedStorage:
    """Return a CPU storage of ``nbytes`` with no memory behind it."""
    start, end, _ = _addresses()
    address = start + next(_numbers) * _STRIDE % max(end - start - nbytes, 1)
    make: Any = torch._C._construct_storage_from_data_pointer
    storage: torch.UntypedStorage = make(address, torch.device("cpu"), nbytes)
    return storage


def dataless_tensor(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, nbytes: int
) -> torch.Tensor:
    """Return a strided CPU tensor over a new data-less storage of ``nbytes``."""
    storage = dataless_storage(nbytes)
    empty: Any = torch.empty(0, dtype=dtype, device="cpu")
    tensor: torch.Tensor = empty.set_(storage, 0, shape, stride)
    return tensor


def is_dataless(tensor: torch.Tensor | torch.UntypedStorage) -> bool:
    """Return whether a strided tensor's memory, or a storage's, lies in the reserved range."""
    start, end, _ = _addresses()
    return start <= tensor.data_ptr() < end
