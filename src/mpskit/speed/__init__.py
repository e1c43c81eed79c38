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
    from mpskit.speed.diagnosis import Cause, CauseKind, Diagnosis, diagnose
    from mpskit.speed.predict import Prediction, predict_speedup
    from mpskit.speed.timing import Timing, synchronize
    from mpskit.speed.workload import Workload

__all__ = [
    "Cause",
    "CauseKind",
    "ChipSpeed",
    "Comparison",
    "Diagnosis",
    "Prediction",
    "Timing",
    "Workload",
    "chip_speed",
    "compare_devices",
    "diagnose",
    "predict_speedup",
    "synchronize",
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
    "synchronize": "mpskit.speed.timing",
}

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _HOMES)
