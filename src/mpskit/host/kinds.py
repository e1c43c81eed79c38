"""What kinds of machine there are, and what a Mac is taken for that does not say."""

from __future__ import annotations

from enum import StrEnum

from mpskit._base.arguments import shown
from mpskit.backends.kinds import kind_of
from mpskit.backends.versions import OLDEST, too_old_for_mps
from mpskit.errors import ArgumentError

__all__ = ["DEFAULT_MACOS", "HostKind", "device_there", "mac_device"]

# The macOS of a Mac that does not say which it has.
DEFAULT_MACOS = "15.6"


class HostKind(StrEnum):
    """What kind of machine, as far as the choice of a device goes."""

    APPLE_SILICON = "apple-silicon"
    APPLE_SILICON_ROSETTA = "apple-silicon-rosetta"
    INTEL_MAC = "intel-mac"
    MAC_VM = "mac-vm"
    LINUX = "linux"
    WINDOWS = "windows"
    OTHER = "other"


def mac_device(kind: HostKind, macos: str | None, vram_bytes: int | None = None) -> str:
    """Return the type of the device that torch would use on a Mac, from facts alone.

    Args:
        kind: an Intel Mac has MPS on an AMD card only, and no Python under Rosetta has it.
        macos: its version; one too old for every torch has only the CPU.
        vram_bytes: the memory of the AMD card.
    """
    metal = kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM)
    metal = metal or (kind is HostKind.INTEL_MAC and vram_bytes is not None)
    old = macos is not None and too_old_for_mps(macos, OLDEST)
    return "mps" if metal and not old else "cpu"


def device_there(own: str, asked: str | None, machine: str) -> str:
    """Return the type of the device asked for on another machine, or its own.

    Raises:
        ArgumentError: it has no such device, as far as is known.
    """
    kind = own if asked is None else kind_of(asked).name
    if kind not in (own, "cpu"):
        raise ArgumentError(f"{machine} is not known to have {shown(asked)}", given=asked)
    return kind
