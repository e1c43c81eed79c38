"""Enums for a choice: why a device was not used, and what the decision rests on."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Basis", "ReasonCode"]


class ReasonCode(StrEnum):
    """Why a candidate was not used."""

    NOT_BUILT = "not-built"
    NOT_A_MAC = "not-a-mac"
    NO_METAL_DEVICE = "no-metal-device"
    MACOS_TOO_OLD = "macos-too-old"
    ROSETTA = "rosetta"
    INTEL_MAC = "intel-mac"
    DISCRETE_GPU_UNSUPPORTED = "discrete-gpu-unsupported"
    VM_UNUSABLE = "vm-unusable"
    VM_NOT_KNOWN = "vm-not-known"
    BAD_FORK = "bad-fork"
    DISABLED_BY_USER = "disabled-by-user"
    NO_DEVICE = "no-device"
    NO_DRIVER = "no-driver"
    NO_SUCH_INDEX = "no-such-index"
    GPU_NOT_WANTED = "gpu-not-wanted"
    CONSERVATIVE_POLICY = "conservative-policy"
    NOT_IN_ORDER = "not-in-order"
    LOWER_PRIORITY = "lower-priority"
    OUTRANKED = "outranked"
    NO_DTYPE = "no-dtype"
    DOES_NOT_FIT = "does-not-fit"
    SLOWER = "slower"


class Basis(StrEnum):
    """What a decision rests on."""

    DEFAULT = "default"
    FORCED = "forced"
    PREDICTED = "predicted"
    MEASURED = "measured"
