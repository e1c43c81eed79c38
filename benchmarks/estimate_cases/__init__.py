"""The models whose memory is estimated and measured by ``bench_estimate.py``."""

from __future__ import annotations

from estimate_cases import mixed, mlp, recurrent, transformer, vision
from estimate_cases.case import Case

__all__ = ["CASES", "Case"]

MODULES = (mlp, vision, recurrent, transformer, mixed)
CASES: dict[str, Case] = {case.name: case for module in MODULES for case in module.CASES}
