"""Which device to use, and why."""

from mpskit.device.choice import forget_decisions, get_optimal_device
from mpskit.device.codes import Basis, ReasonCode
from mpskit.device.info import DeviceChoice, DeviceInfo, Rejected
from mpskit.device.status import BackendStatus

__all__ = [
    "BackendStatus",
    "Basis",
    "DeviceChoice",
    "DeviceInfo",
    "ReasonCode",
    "Rejected",
    "forget_decisions",
    "get_optimal_device",
]
