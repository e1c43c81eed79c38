"""Returns torch's cached memory to the system, one clear at a time, and reports how much.

Torch keeps freed memory for the next allocation. Emptying that cache returns it to the system, but
waits for all work in flight, so it belongs between phases and not in every step: see
``empty_cache_scope`` and ``CacheKeeper`` in ``mpskit.memory.cache_scope``.

It clears the named device or those that this process uses, never others that the machine has.
Nothing here initialises a backend. CUDA, XPU and, from torch 2.13, MPS can be asked whether they
are in use. MPS before 2.13 cannot, and its ``empty_cache`` would be a first use: it allocates
nothing, but freezes the watermark variables. It is then cleared if it is named, if it is torch's
default device, or once an MPS tensor has been seen (searched for when ``collect`` is on).
"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import ConfigDict, computed_field

from mpskit._base.arguments import shown
from mpskit._base.locks import run_locked
from mpskit._base.sizes import format_bytes
from mpskit._base.state import remembered
from mpskit._base.values import Value
from mpskit.backends.kinds import KINDS, Api, device_type, kind_of
from mpskit.backends.memory import as_device, backend, default_device, present_kinds, torch_has
from mpskit.errors import ArgumentTypeError
from mpskit.memory.amounts import Amount, amount_bytes
from mpskit.system.memory import system_memory

if TYPE_CHECKING:
    import torch

    from mpskit.backends.memory import DeviceLike

__all__ = ["CacheReport", "check_device", "clear", "devices_in_use", "empty_cache"]

_NAME = re.compile(rf"(?:{'|'.join(KINDS)})(?::\d{{1,2}})?", re.ASCII)
# How long a clear after an out-of-memory error waits for one in another thread.
_PATIENCE_SECONDS = 30.0
_BUSY = "another clear was running, so this one was skipped"

# One lock per process, because a lock held during a fork would stay locked in the child.
_locks: dict[int, threading.Lock] = {}
# Devices seen in use that cannot be asked whether they are.
_seen: set[str] = remembered(set())


class CacheReport(Value):
    """What a clear did.

    Attributes:
        devices: the devices whose cache was emptied; none if nothing is in use.
        before_bytes: what the process held of them before (MPS: the driver's total; others: what
            torch's allocator had reserved); None if unknown.
        after_bytes: the same afterwards.
        graph_cache: the MPS graph cache was cleared too, which torch does from 2.13 on.
        notes: what was skipped, and why.
    """

    # Ignored extras let its own JSON, which also has ``freed_bytes``, be read back.
    model_config = ConfigDict(extra="ignore")

    devices: tuple[str, ...] = ()
    before_bytes: int | None = None
    after_bytes: int | None = None
    graph_cache: bool = False
    notes: tuple[str, ...] = ()

    @computed_field
    def freed_bytes(self) -> int:
        """Bytes returned to the system; 0 if there were none or they are unknown."""
        return max(0, (self.before_bytes or 0) - (self.after_bytes or 0))

    def __str__(self) -> str:
        text = f"{' and '.join(self.devices)}: cache emptied" if self.devices else "nothing cleared"
        if self.before_bytes is not None and self.after_bytes is not None:
            before, after = format_bytes(self.before_bytes), format_bytes(self.after_bytes)
            freed = format_bytes(max(0, self.before_bytes - self.after_bytes))
            text += f", {before} held before and {after} after, {freed} freed"
        text += ", the MPS graph cache too" if self.graph_cache else ""
        return "; ".join([text, *self.notes])


def empty_cache(device: DeviceLike | None = None, *, collect: bool = True) -> CacheReport:
    """Return the memory that torch has cached to the system, and report how much it was.

    It waits for all the device's work, so it belongs between phases (after loading, after training,
    after unloading a model), not in every step. One clear runs at a time: a second caller returns
    at once, and its report says so. The CPU has no cache: only Python's garbage is collected. With
    several CUDA cards torch clears all, and the figures are those of the named or the current one.

    Args:
        device: which device; None for those that this process uses. A device that is not in use is
            left alone; if torch is not imported, nothing is done.
        collect: collect Python's garbage first, so that tensors in reference cycles go too.

    Returns:
        A report with ``before_bytes``, ``after_bytes`` and ``freed_bytes``.

    Raises:
        ArgumentTypeError: ``device`` is neither a device nor a string.
        ArgumentError: torch knows no such device.
    """
    check_device(device)
    report = clear(device, collect=collect)
    return report if report is not None else CacheReport(notes=(_nothing(device),))


def _nothing(device: DeviceLike | None) -> str:
    if device is None:
        return "no accelerator is in use"
    if "torch" in sys.modules and backend(device).is_initialized() is None:
        return (
            f"this torch cannot say whether {device} is in use, and asking would be its first use"
        )
    return f"{device} is not in use or has no cache"


def check_device(device: object) -> None:
    """Check a device argument, without importing torch for the usual names.

    Raises:
        ArgumentTypeError: it is neither a device nor a string.
        ArgumentError: torch knows no such device.
    """
    if device is None or (hasattr(device, "index") and hasattr(device, "type")):
        return
    if not isinstance(device, str):
        raise ArgumentTypeError(
            f"device must be one such as 'mps' or 'cuda:0', got {shown(device)}", given=device
        )
    if not _NAME.fullmatch(device):
        as_device(device)


def clear(
    device: DeviceLike | None,
    *,
    collect: bool,
    above: Amount | None = None,
    wait: bool = False,
) -> CacheReport | None:
    """Empty the cache of the devices in use; None if there is none or too little to free.

    Args:
        device: as :func:`empty_cache` takes it.
        collect: collect Python's garbage first, which is all that the CPU needs.
        above: do nothing if less than this could be freed: memory that the process holds on the
            device without a live tensor in it. A share is of the device's memory.
        wait: wait for a running clear instead of skipping this one.
    """
    devices = devices_in_use(device, look=collect)
    if above is not None:
        devices = tuple(one for one in devices if _held(one, above))
    if not devices and (above is not None or not collect):
        return None
    lock = _locks.setdefault(os.getpid(), threading.Lock())
    return run_locked(
        lock,
        lambda: _clear(devices, collect, above),
        CacheReport(notes=(_BUSY,)),
        timeout=_PATIENCE_SECONDS if wait else 0,
    )


def devices_in_use(device: DeviceLike | None, *, look: bool = False) -> tuple[DeviceLike, ...]:
    """Return the devices with a cache that this process uses: the one named, or all.

    ``look`` searches for a live tensor if a backend cannot be asked.
    """
    if "torch" not in sys.modules:
        return ()
    if device is None:
        return tuple(kind for kind in present_kinds() if _is_in_use(kind, look))
    if not kind_of(device).caches or backend(device).is_initialized() is False:
        return ()
    _seen.add(device_type(device))
    return (device,)


def _is_in_use(kind: str, look: bool) -> bool:
    state = backend(kind).is_initialized()
    if state is None and kind not in _seen and (_is_default(kind) or (look and _has_tensor(kind))):
        _seen.add(kind)
    return kind in _seen if state is None else state


def _is_default(kind: str) -> bool:
    default = default_device()
    return default is not None and default.type == kind


def _has_tensor(kind: str) -> bool:
    torch = sys.modules["torch"]
    # Exact types only, because reading an unknown object's device may run any code.
    types = (torch.Tensor, torch.nn.Parameter)
    return any(type(one) in types and _kind_of(one) == kind for one in gc.get_objects())


def _kind_of(tensor: torch.Tensor) -> str | None:
    try:
        return tensor.device.type
    except RuntimeError:  # torch's undefined tensor, such as one that the collector has cleared
        return None


def _held(device: DeviceLike, above: Amount) -> bool:
    """Return whether the process holds ``above`` of the device at all, a cheap first check."""
    held = backend(device).reserved_bytes()
    return held is not None and held >= _threshold(device, above)


def _idle(device: DeviceLike, above: Amount) -> bool:
    held, live = backend(device).reserved_bytes(), backend(device).allocated_bytes()
    return held is not None and held - (live or 0) >= _threshold(device, above)


def _threshold(device: DeviceLike, above: Amount) -> int:
    whole = 0
    if not isinstance(above, int):
        asked = backend(device)
        known = asked.recommended_bytes() or asked.total_bytes()
        whole = known or system_memory().total or 0
    return amount_bytes(above, whole, "above")


def _clear(
    devices: Iterable[DeviceLike], collect: bool, above: Amount | None
) -> CacheReport | None:
    if collect:
        gc.collect()
    chosen = [one for one in devices if above is None or _idle(one, above)]
    if not chosen:
        return None
    before = _sum(chosen)
    for one in chosen:
        backend(one).empty_cache()
    graphs = any(kind_of(one).api is Api.MPS for one in chosen)
    return CacheReport(
        devices=tuple(str(one) for one in chosen),
        before_bytes=before,
        after_bytes=_sum(chosen),
        graph_cache=graphs and torch_has("mps.graph_cache_cleared"),
    )


def _sum(devices: Iterable[DeviceLike]) -> int | None:
    held = [backend(one).reserved_bytes() for one in devices]
    known = [size for size in held if size is not None]
    return sum(known) if len(known) == len(held) else None
