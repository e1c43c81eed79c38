"""Which device to use, and why."""

from mpskit.device.choice import forget_decisions, get_optimal_device
from mpskit.device.codes import Basis, ReasonCode
from mpskit.device.info import DeviceChoice, DeviceInfo, Rejected
from mpskit.device.status import BackendStatus, cpu_status, cuda_status, mps_status, other_status

__all__ = [
    "BackendStatus",
    "Basis",
    "DeviceChoice",
    "DeviceInfo",
    "ReasonCode",
    "Rejected",
    "cpu_status",
    "cuda_status",
    "forget_decisions",
    "get_optimal_device",
    "mps_status",
    "other_status",
]
