"""What an Apple chip reaches: arithmetic and bandwidth of its CPU and of its GPU in torch.

The GPU's peak and the bandwidth of the unified memory are in ``data/apple_chips.csv``; the share
of the bandwidth that each side reaches, and the CPU's matrix units, are in ``data/speed.toml``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mpskit._base.arguments import shown
from mpskit._base.data import read_toml
from mpskit._base.values import Value
from mpskit.errors import ArgumentTypeError
from mpskit.host.chips import Chip, chip_rows, parse_chip

__all__ = ["ChipSpeed", "chip_speed"]


class ChipSpeed(Value):
    """Rates of a chip's two devices: a roofline for each.

    Attributes:
        name: of the chip whose figures these are: ``M3 Max``.
        known: whether the chip asked for is in the table; else the figures are those of a chip
            like it.
        cpu_tflops: float32 matrix multiplication on the CPU, 10^12 operations a second.
        gpu_tflops: peak of the GPU in float32, 10^12 operations a second.
        cpu_bandwidth_gbs: that the CPU reaches, 10^9 bytes a second.
        gpu_bandwidth_gbs: that the GPU reaches, 10^9 bytes a second.
    """

    name: str
    known: bool
    cpu_tflops: float
    gpu_tflops: float
    cpu_bandwidth_gbs: float
    gpu_bandwidth_gbs: float

    def __str__(self) -> str:
        return (
            f"{self.name}: CPU {self.cpu_tflops:.1f} TFLOPS and {self.cpu_bandwidth_gbs:.0f} GB/s, "
            f"GPU {self.gpu_tflops:.1f} TFLOPS and {self.gpu_bandwidth_gbs:.0f} GB/s"
        )


def chip_speed(chip: str | Chip | None = None) -> ChipSpeed:
    """Return the rates of a chip.

    A chip that the table lacks gets the figures of the newest one of its tier, and no chip (None,
    an Intel Mac) those of ``unknown_chip`` in ``data/speed.toml``.

    Args:
        chip: a name (``M3 Max``, ``Apple M1 (Virtual)``), a chip with its core counts, or None.

    Raises:
        ArgumentTypeError: ``chip`` is something else.
    """
    if chip is not None and not isinstance(chip, str | Chip):
        raise ArgumentTypeError(
            f"a chip is a name like 'M3 Max' or None, not {shown(chip)}", given=chip
        )
    parsed = parse_chip(chip) if isinstance(chip, str) else chip
    rows = [row.chip for row in chip_rows() if row.chip.fp32_tflops]
    named = [row for row in rows if parsed is not None and row.name == parsed.name]
    known = bool(named) and not (isinstance(chip, str) and "(virtual)" in chip.lower())
    cores = parsed.gpu_cores if parsed is not None else None
    variants = [row for row in named if row.gpu_cores == cores] or named or _like(parsed, rows)
    return _rates(variants, known=known)


def _like(chip: Chip | None, rows: Sequence[Chip]) -> list[Chip]:
    """Return the variants of the chip that stands in for one without figures."""
    tier = chip.tier if chip is not None and chip.family == "M" else None
    like = [row for row in rows if row.tier == tier]
    name = like[-1].name if like else read_toml("speed.toml")["chip"]["unknown_chip"]
    return [row for row in rows if row.name == name]


def _rates(variants: Sequence[Chip], *, known: bool) -> ChipSpeed:
    figures = read_toml("speed.toml")["chip"]
    bandwidth = statistics.median(chip.memory_bandwidth_gbs or 0.0 for chip in variants)
    return ChipSpeed(
        name=variants[0].name,
        known=known,
        cpu_tflops=statistics.median(_cpu_tflops(chip, figures) for chip in variants),
        gpu_tflops=statistics.median(chip.fp32_tflops or 0.0 for chip in variants),
        cpu_bandwidth_gbs=bandwidth * figures["cpu_bandwidth_share"],
        gpu_bandwidth_gbs=bandwidth * figures["gpu_bandwidth_share"],
    )


def _cpu_tflops(chip: Chip, figures: Mapping[str, Any]) -> float:
    """Return the rate of the CPU's matrix units: one in each cluster of performance cores."""
    dies = 2 if chip.tier == "ultra" else 1
    clusters = dies * math.ceil((chip.performance_cores or 1) / dies / figures["cluster_cores"])
    growth = figures["cpu_growth"] ** ((chip.generation or 1) - 1)
    return float(clusters * figures["cpu_cluster_tflops"] * growth)
