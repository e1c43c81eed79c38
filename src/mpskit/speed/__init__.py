"""How fast a step is on the CPU and on MPS: counts, roofline, prediction.

``Workload`` holds what is counted or measured of a step, ``chip_speed`` what a chip reaches, and
``predict_speedup`` puts the two together.
"""

from __future__ import annotations

from mpskit.speed.chip_speed import ChipSpeed, chip_speed
from mpskit.speed.predict import Prediction, predict_speedup
from mpskit.speed.workload import Workload

__all__ = ["ChipSpeed", "Prediction", "Workload", "chip_speed", "predict_speedup"]
