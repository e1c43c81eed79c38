"""Pure models of torch's allocators: MPS by version, CUDA's and XPU's caching one, the CPU's.

The same models serve the estimates, which replay the events of a traced step, and the simulated
Mac, which charges every live storage. Importing it imports neither torch nor pydantic.

>>> from mpskit.allocator import allocator_for
>>> mac = allocator_for("mps", torch_version="2.13.0")
>>> block = mac.allocate(10 * 1024**2)
>>> mac.live_bytes, mac.driver_bytes
(10485760, 1073741824)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.lazy import resolver

if TYPE_CHECKING:
    from mpskit.allocator.cpu import CpuAllocator
    from mpskit.allocator.create import allocator_for
    from mpskit.allocator.cuda import CudaAllocator
    from mpskit.allocator.errors import AllocatorLimitError, BufferTooLargeError, WatermarkError
    from mpskit.allocator.events import AllocatorModel, Event, Replay, replay
    from mpskit.allocator.mps_base import MpsAllocator

# A budget takes the watermarks from this room, and pays for none of the models.
_PUBLIC = {
    "AllocatorLimitError": "mpskit.allocator.errors",
    "AllocatorModel": "mpskit.allocator.events",
    "BufferTooLargeError": "mpskit.allocator.errors",
    "CpuAllocator": "mpskit.allocator.cpu",
    "CudaAllocator": "mpskit.allocator.cuda",
    "Event": "mpskit.allocator.events",
    "MpsAllocator": "mpskit.allocator.mps_base",
    "Replay": "mpskit.allocator.events",
    "WatermarkError": "mpskit.allocator.errors",
    "allocator_for": "mpskit.allocator.create",
    "replay": "mpskit.allocator.events",
}

__all__ = [
    "AllocatorLimitError",
    "AllocatorModel",
    "BufferTooLargeError",
    "CpuAllocator",
    "CudaAllocator",
    "Event",
    "MpsAllocator",
    "Replay",
    "WatermarkError",
    "allocator_for",
    "replay",
]

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _PUBLIC)
