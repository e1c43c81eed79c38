"""Which model of an allocator a device has: by its type and, on MPS, by torch's version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from mpskit._base.arguments import shown
from mpskit.allocator.cpu import CpuAllocator
from mpskit.allocator.cuda import CudaAllocator
from mpskit.allocator.mps import CachingMps, PlacementMps
from mpskit.allocator.mps_base import Limits, MpsAllocator
from mpskit.allocator.watermarks import DEFAULT_HIGH, DEFAULT_LOW
from mpskit.backends.kinds import ESTIMATED, AllocatorRules, kind_of
from mpskit.backends.versions import has
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.allocator.events import AllocatorModel

__all__ = ["allocator_for"]


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
        device: ``"mps"``, ``"cuda"``, ``"xpu"`` or ``"cpu"``.
        torch_version: the torch whose allocator it is; only MPS differs by version.
        recommended_bytes: what limits are ratios of on MPS (``recommendedMaxWorkingSetSize``),
            and the card's memory on CUDA and XPU; None for no limit.
        max_buffer_bytes: Metal's ``maxBufferLength``; None for no such limit.
        high: ``PYTORCH_MPS_HIGH_WATERMARK_RATIO``; 0 for no limit.
        low: ``PYTORCH_MPS_LOW_WATERMARK_RATIO``; 0 for no collection.
        unified: False for a discrete GPU of an Intel Mac (torch to 2.12).

    Raises:
        ArgumentError: the device has no model here.
        WatermarkError: a ratio that torch refuses, with torch's text.
    """
    kind = kind_of(device)
    if kind.allocator is AllocatorRules.MPS:
        limits = Limits(recommended_bytes, max_buffer_bytes, high, low)
        if has("mps.placement_heaps", torch_version):
            return PlacementMps(torch_version, limits)
        return CachingMps(torch_version, limits, unified=unified)
    if kind.allocator is AllocatorRules.CACHING:
        return CudaAllocator(total_bytes=recommended_bytes, title=kind.title)
    if kind.allocator is AllocatorRules.CPU:
        return CpuAllocator()
    raise ArgumentError(f"no model of {shown(device)}: one of {', '.join(ESTIMATED)}", given=device)
