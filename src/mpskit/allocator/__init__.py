"""Pure models of torch's allocators: MPS by version, the CUDA caching allocator, and the CPU's.

The same models serve the estimates, which replay the events of a traced step, and the simulated
Mac, which charges every live storage. Importing it imports neither torch nor pydantic.

>>> from mpskit.allocator import allocator_for
>>> mac = allocator_for("mps", torch_version="2.13.0")
>>> block = mac.allocate(10 * 1024**2)
>>> mac.live_bytes, mac.driver_bytes
(10485760, 1073741824)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from mpskit.allocator.cpu import CpuAllocator
from mpskit.allocator.cuda import CudaAllocator
from mpskit.allocator.errors import AllocatorLimitError, BufferTooLargeError, WatermarkError
from mpskit.allocator.mps import CachingMps, PlacementMps
from mpskit.allocator.mps_base import DEFAULT_HIGH, DEFAULT_LOW, Limits, MpsAllocator
from mpskit.backends.versions import has
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.allocator.events import AllocatorModel, Event, Replay, replay

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


@overload
def allocator_for(
    device: Literal["mps"],
    *,
    torch_version: str,
    recommended_bytes: int | None = None,
    max_buffer_bytes: int | None = None,
    high: float = DEFAULT_HIGH,
    low: float = DEFAULT_LOW,
    unified: bool = True,
) -> MpsAllocator: ...
@overload
def allocator_for(
    device: str,
    *,
    torch_version: str,
    recommended_bytes: int | None = None,
    max_buffer_bytes: int | None = None,
    high: float = DEFAULT_HIGH,
    low: float = DEFAULT_LOW,
    unified: bool = True,
) -> AllocatorModel: ...
def allocator_for(
    device: str,
    *,
    torch_version: str,
    recommended_bytes: int | None = None,
    max_buffer_bytes: int | None = None,
    high: float = DEFAULT_HIGH,
    low: float = DEFAULT_LOW,
    unified: bool = True,
) -> AllocatorModel:
    """Return a fresh model of a device's allocator.

    Args:
        device: ``"mps"``, ``"cuda"`` or ``"cpu"``.
        torch_version: the torch whose allocator it is; only MPS differs by version.
        recommended_bytes: Metal's ``recommendedMaxWorkingSetSize``, to which the ratios apply,
            or the card's memory on CUDA; None for no limit.
        max_buffer_bytes: Metal's ``maxBufferLength``; None for no such limit.
        high: ``PYTORCH_MPS_HIGH_WATERMARK_RATIO``; 0 for no limit.
        low: ``PYTORCH_MPS_LOW_WATERMARK_RATIO``; 0 for no collection.
        unified: False for a discrete GPU of an Intel Mac (torch to 2.12).

    Raises:
        ArgumentError: there is no model of that device's allocator.
        WatermarkError: a ratio that torch refuses, with torch's text.
    """
    if device == "mps":
        limits = Limits(recommended_bytes, max_buffer_bytes, high, low)
        if has("mps.placement_heaps", torch_version):
            return PlacementMps(torch_version, limits)
        return CachingMps(torch_version, limits, unified=unified)
    if device == "cuda":
        return CudaAllocator(total_bytes=recommended_bytes)
    if device == "cpu":
        return CpuAllocator()
    raise ArgumentError(f"no model of {device!r}: one of 'mps', 'cuda' or 'cpu'", given=device)


def __getattr__(name: str) -> Any:
    # events holds a pydantic model: only a replay pays for importing pydantic.
    if name in {"AllocatorModel", "Event", "Replay", "replay"}:
        from mpskit.allocator import events

        return getattr(events, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
