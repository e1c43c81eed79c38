"""The device whose results are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit.backends.kinds import ACCELERATORS
from mpskit.backends.memory import as_device, backend
from mpskit.errors import DeviceUnavailableError

if TYPE_CHECKING:
    import torch

__all__ = ["available_device"]


def available_device(device: str | torch.device | None) -> torch.device:
    """Return a device that torch can use; None for this machine's accelerator.

    Raises:
        DeviceUnavailableError: torch sees no such device, or no accelerator at all.
        ArgumentError: torch knows no device of that name.
        ArgumentTypeError: it is neither a device nor a str.
    """
    if device is not None:
        found = as_device(device)
        if found.type != "meta" and backend(found).is_available():
            return found
        raise DeviceUnavailableError(
            f"torch sees no {str(found)!r} on this machine (see: mpskit doctor)", given=device
        )
    for name in ACCELERATORS:
        if backend(name).is_available():
            return as_device(name)
    raise DeviceUnavailableError(
        f"this machine has no accelerator to check (looked for {', '.join(ACCELERATORS)}): run it "
        "where one is, or on a simulated Mac: mpskit simulate m1-8gb -- -m mpskit check"
    )
