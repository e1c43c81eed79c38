"""The ``torch._C`` bindings of a macOS build, backed by the simulated machine."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from mpskit.backends.versions import has
from mpskit.dispatch.patches import Patches
from mpskit.errors import SimulationError
from mpskit.simulation import events
from mpskit.simulation.core import MPS, Simulation

__all__ = ["install"]


def install(simulation: Simulation, patches: Patches) -> None:
    """Install the simulated bindings in ``torch._C``."""
    bindings = _machine(simulation) | _memory(simulation) | _profiler() | events.bindings()
    bindings["_group_tensors_by_device_and_dtype"] = _grouping(simulation)
    if simulation.usable:
        bindings |= _accelerator(simulation)
    for name, value in bindings.items():
        patches.set(torch._C, name, value)


def _machine(simulation: Simulation) -> dict[str, Any]:
    machine = simulation.machine
    name = machine.readings().metal_device or ""
    return {
        "_has_mps": True,
        "_mps_is_available": lambda: simulation.usable,
        "_mps_is_in_bad_fork": lambda: False,
        "_mps_deviceSynchronize": lambda: None,
        "_mps_is_on_macos_or_newer": _newer_than(machine.macos, simulation.torch_version),
        "_mps_get_name": lambda: name,
        "_mps_get_core_count": lambda: machine.gpu_cores or 0,
    }


def _newer_than(macos: str, torch_version: str) -> Any:
    """Return torch's check, which knows only the versions that were out when it was built."""
    own = tuple(int(part) for part in macos.split("."))
    newest = 26 if has("mps.knows_macos_26", torch_version) else 15

    def is_newer(major: int, minor: int) -> bool:
        if not 13 <= major <= newest or major in range(16, 26):
            warnings.warn(
                f"Checking for unexpected MacOS {major}.{minor} returning false", stacklevel=3
            )
            return False
        return own >= (major, minor)

    return is_newer


def _grouping(simulation: Simulation) -> Any:
    """Return torch's grouping by device and dtype, which reads a tensor's device in C++.

    Optimizers and ``clip_grad_norm_`` go by it: MPS is in neither list of devices whose tensors
    they update all at once (torch/utils/_foreach_utils.py).
    """
    by_dtype: Any = vars(torch._C)["_group_tensors_by_device_and_dtype"]
    has = simulation.tags.has

    def grouped(lists: Any, with_indices: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for (device, dtype), (members, indices) in by_dtype(lists, with_indices).items():
            on_mac = [has(tensor) for tensor in members[0]]
            for side in dict.fromkeys(on_mac):
                own = [place for place, one in enumerate(on_mac) if one is side]
                parts = [[each[place] for place in own] if each else [] for each in members]
                numbers = [indices[place] for place in own] if indices else []
                found[MPS if side else device, dtype] = (parts, numbers)
        return found

    return grouped


def _memory(simulation: Simulation) -> dict[str, Any]:
    memory = simulation.memory

    def recommended() -> int:
        memory.use()
        return memory.recommended_bytes

    return {
        "_mps_emptyCache": lambda: memory.model.empty_cache(),
        "_mps_currentAllocatedMemory": lambda: memory.model.live_bytes,
        "_mps_driverAllocatedMemory": lambda: memory.model.driver_bytes,
        "_mps_recommendedMaxMemory": recommended,
        "_mps_maxBufferLength": lambda: memory.max_buffer_bytes,
        "_mps_setMemoryFraction": lambda ratio: memory.model.set_high_watermark(ratio),
    }


def _profiler() -> dict[str, Any]:
    def no_metal(*_: Any) -> Any:
        raise SimulationError("there is no Metal on a simulated Mac: no shaders, captures, buffers")

    return {
        "_mps_profilerStartTrace": lambda *_: None,
        "_mps_profilerStopTrace": lambda: None,
        "_mps_isCaptureEnabled": lambda: False,
        "_mps_isCapturing": lambda: False,
        **dict.fromkeys(_METAL, no_metal),
    }


_METAL = (
    "_mps_compileShader",
    "_mps_loadMetalllib",
    "_mps_loadMetallibFromPath",
    "_mps_startCapture",
    "_mps_stopCapture",
    "_mps_host_alias_storage",
    "_mps_allocator_waitForEvents",
)
# getDeviceCapability in aten/src/ATen/mps/MPSGuardImpl.h
_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.complex32, torch.complex64),
)


def _accelerator(simulation: Simulation) -> dict[str, Any]:
    has_float8 = has("mps.float8_e4m3fn", simulation.torch_version)
    dtypes = (*_DTYPES, torch.float8_e4m3fn) if has_float8 else _DTYPES
    bindings: dict[str, Any] = {
        "_accelerator_getAccelerator": lambda: torch.device("mps"),
        "_accelerator_getDeviceIndex": lambda: 0,
        "_accelerator_setDeviceIndex": lambda _: None,
        "_accelerator_exchangeDevice": lambda _: 0,
        "_accelerator_maybeExchangeDevice": lambda _: 0,
        "_accelerator_synchronizeDevice": lambda *_: None,
        "_accelerator_getDefaultGenerator": lambda _: simulation.randomness.default,
        "_accelerator_getDeviceCapability": lambda _: {"supported_dtypes": set(dtypes)},
        "_accelerator_deviceCount": lambda: 1,
        "_accelerator_hooks_device_count": lambda: 1,
        "_accelerator_hooks_get_current_device": lambda: 0,
        "_accelerator_hooks_set_current_device": lambda _: None,
        "_accelerator_hooks_exchange_device": lambda _: 0,
        "_accelerator_hooks_maybe_exchange_device": lambda _: 0,
        "_get_accelerator": lambda *_: torch.device("mps"),
    }
    return bindings | _accelerator_memory(simulation)


def _accelerator_memory(simulation: Simulation) -> dict[str, Any]:
    if not has("accelerator.memory.mps", simulation.torch_version):
        return dict.fromkeys(_MEMORY_BINDINGS, _no_device_allocator)
    memory = simulation.memory

    def figures(_: int) -> dict[str, Any]:
        model = memory.model
        return {
            "allocated_bytes": _entry(model.live_bytes, model.peak_live_bytes),
            "reserved_bytes": _entry(model.heap_bytes, model.peak_driver_bytes),
        }

    def free_and_total(_: int) -> tuple[int, int]:
        total = memory.recommended_bytes
        return max(0, total - memory.model.driver_bytes), total

    return {
        "_accelerator_isAllocatorInitialized": lambda: memory.peek() is not None,
        "_accelerator_emptyCache": lambda: memory.model.empty_cache(),
        "_accelerator_emptyHostCache": lambda: None,
        "_accelerator_getDeviceStats": figures,
        "_accelerator_getMemoryInfo": free_and_total,
        "_accelerator_resetPeakStats": lambda _: memory.model.reset_peaks(),
        "_accelerator_resetAccumulatedStats": lambda _: None,
    }


_MEMORY_BINDINGS = (
    "_accelerator_isAllocatorInitialized",
    "_accelerator_emptyCache",
    "_accelerator_getDeviceStats",
    "_accelerator_getMemoryInfo",
    "_accelerator_resetPeakStats",
    "_accelerator_resetAccumulatedStats",
)


def _no_device_allocator(*_: Any) -> Any:
    # pytorch#186430: the guard call itself raises in 2.9 to 2.12.
    raise RuntimeError("Allocator for mps is not a DeviceAllocator.")


def _entry(current: int, peak: int) -> dict[str, dict[str, int]]:
    """Return one statistic; MPS fills only the entries of all pools together."""
    zero = {"current": 0, "peak": 0, "allocated": 0, "freed": 0}
    return {
        "all": zero | {"current": current, "peak": peak},
        "large_pool": zero,
        "small_pool": zero,
    }
