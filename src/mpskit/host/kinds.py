"""What kinds of machine there are, as far as the choice of a device goes."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["HostKind"]


class HostKind(StrEnum):
    """What kind of machine, as far as the choice of a device goes."""

    APPLE_SILICON = "apple-silicon"
    APPLE_SILICON_ROSETTA = "apple-silicon-rosetta"
    INTEL_MAC = "intel-mac"
    MAC_VM = "mac-vm"
    LINUX = "linux"
    WINDOWS = "windows"
    OTHER = "other"
