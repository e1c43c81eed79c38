"""Tensors that are real CPU tensors to torch and have no memory behind them.

torch's own fake tensors are a subclass: each operator on one goes through Python several times,
composite operators see another device than the one that counts, and autograd aborts the process
on a device that the build lacks. An unbacked tensor is a plain CPU tensor whose storage points
into a reserved, never written range of addresses: autograd, autocast and every composite operator
treat it as what it claims to be, and only the kernels must be kept away from it (``trace`` does).
A kernel that reads it all the same finds zeros instead of crashing.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from typing import TYPE_CHECKING, Any

from mpskit._base.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["is_unbacked", "unbacked_storage", "unbacked_tensor"]

# Reserved, not committed: the first size that the system grants.
_RANGES = (1024 * GIB, 64 * GIB, 4 * GIB, 256 * MIB)
# Linux; the constant has no name in Python's mmap before 3.13 or so. Others ignore the bit or
# do not need it, because they commit nothing before the first write.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_STRIDE = 4096


@functools.cache
def _addresses() -> tuple[int, int, mmap.mmap]:
    """Reserve the range once per process: its first address, its end, and its owner."""
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


class _Next:
    """The next address to give out: distinct ones, because some code compares ``data_ptr``."""

    offset = 0


def unbacked_storage(nbytes: int) -> torch.UntypedStorage:
    """Return a CPU storage of ``nbytes`` with no memory behind it."""
    import torch

    start, end, _ = _addresses()
    if _Next.offset + nbytes > end - start:
        _Next.offset = 0
    address = start + _Next.offset
    _Next.offset += _STRIDE
    make: Any = torch._C._construct_storage_from_data_pointer
    storage: torch.UntypedStorage = make(address, torch.device("cpu"), nbytes)
    return storage


def unbacked_tensor(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, nbytes: int
) -> torch.Tensor:
    """Return a strided CPU tensor over a new unbacked storage of ``nbytes``."""
    import torch

    storage = unbacked_storage(nbytes)
    empty: Any = torch.empty(0, dtype=dtype, device="cpu")
    tensor: torch.Tensor = empty.set_(storage, 0, shape, stride)
    return tensor


def is_unbacked(tensor: torch.Tensor) -> bool:
    """Return whether a strided tensor's memory lies in the reserved range."""
    start, end, _ = _addresses()
    return start <= tensor.data_ptr() < end
