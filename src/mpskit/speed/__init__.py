"""How fast a step is on the CPU and on MPS: counts, roofline, prediction, times.

``Workload`` holds what is counted or measured of a step, ``chip_speed`` what a chip reaches,
``predict_speedup`` puts the two together, and ``cascade`` chooses by them and by memory.
"""

from __future__ import annotations

from mpskit._base.lazy import resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpskit.speed.chip_rates import ChipSpeed, chip_speed
    from mpskit.speed.compare import Comparison, compare_devices
    from mpskit.speed.count_config import workload_from_config
    from mpskit.speed.diagnosis import Cause, CauseKind, Diagnosis, diagnose
    from mpskit.speed.predict import Prediction, predict_speedup
    from mpskit.speed.step_time import (
        StepTime,
        TimeRange,
        cloud_times,
        estimate_time,
        why_no_time,
    )
    from mpskit.speed.timing import Timing, synchronize
    from mpskit.speed.workload import Workload

__all__ = [
    "Cause",
    "CauseKind",
    "ChipSpeed",
    "Comparison",
    "Diagnosis",
    "Prediction",
    "StepTime",
    "TimeRange",
    "Timing",
    "Workload",
    "chip_speed",
    "cloud_times",
    "compare_devices",
    "diagnose",
    "estimate_time",
    "predict_speedup",
    "synchronize",
    "why_no_time",
    "workload_from_config",
]

_HOMES = {
    "diagnose": "mpskit.speed.diagnosis",
    "compare_devices": "mpskit.speed.compare",
    "Diagnosis": "mpskit.speed.diagnosis",
    "Comparison": "mpskit.speed.compare",
    "CauseKind": "mpskit.speed.diagnosis",
    "Cause": "mpskit.speed.diagnosis",
    "ChipSpeed": "mpskit.speed.chip_rates",
    "Prediction": "mpskit.speed.predict",
    "Timing": "mpskit.speed.timing",
    "Workload": "mpskit.speed.workload",
    "chip_speed": "mpskit.speed.chip_rates",
    "predict_speedup": "mpskit.speed.predict",
    "StepTime": "mpskit.speed.step_time",
    "TimeRange": "mpskit.speed.step_time",
    "cloud_times": "mpskit.speed.step_time",
    "estimate_time": "mpskit.speed.step_time",
    "synchronize": "mpskit.speed.timing",
    "why_no_time": "mpskit.speed.step_time",
    "workload_from_config": "mpskit.speed.count_config",
}

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _HOMES)
