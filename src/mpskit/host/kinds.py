"""What kinds of machine there are, and what a Mac is taken for that does not say."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DEFAULT_MACOS", "HostKind"]

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
