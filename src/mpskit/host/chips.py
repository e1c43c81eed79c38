"""Apple's chips by name and core counts.

``data/apple_chips.csv`` has a row for each variant of a chip. A figure is given only where all
variants that are still possible agree on it; a chip that is not in the table has a name, a
generation and a tier, but no figures.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mpskit._base.data import read_csv
from mpskit._base.values import Value

__all__ = ["Chip", "ChipRow", "chip_rows", "parse_chip"]

# "Apple M3 Max", "M9 Ultra", "Apple A18 Pro". _FOREIGN keeps out Intel's "Core m3".
_NAME = r"(?i)(?<![A-Za-z0-9-])([MA])(\d{1,3})(?![0-9-])\s*(pro|max|ultra|extreme)?\b"
_FOREIGN = r"(?i)intel|xeon|amd|radeon|nvidia|ryzen|core\(tm\)"
_APPLE = r"(?i)\bapple\b"


class Chip(Value):
    """An Apple chip: what its name says, and its known figures.

    Attributes:
        name: without the maker: ``M3 Max``, ``A18 Pro``; ``Apple processor`` if nothing more is
            known.
        family: ``M`` or ``A``; None if the name does not say.
        generation: 3 for an M3, 18 for an A18 Pro; comparable only within a family.
        tier: base, pro, max, ultra, phone, or what the name says.
        performance_cores: cores that are not efficiency cores.
        efficiency_cores: efficiency cores.
        gpu_cores: GPU cores.
        memory_bandwidth_gbs: bandwidth of the unified memory, in 10^9 bytes per second.
        fp32_tflops: peak of the GPU in float32, in 10^12 operations per second.
        metal_family: Apple7 (M1) to Apple10 (M5, M6).
        bf16_native: whether the GPU computes in bfloat16 instead of emulating it.
        confidence: in the figures, as the table rates it: high, medium or low.
    """

    name: str
    family: str | None = None
    generation: int | None = None
    tier: str | None = None
    performance_cores: int | None = None
    efficiency_cores: int | None = None
    gpu_cores: int | None = None
    memory_bandwidth_gbs: float | None = None
    fp32_tflops: float | None = None
    metal_family: str | None = None
    bf16_native: bool | None = None
    confidence: str | None = None

    def __str__(self) -> str:
        cores = f" with {self.gpu_cores} GPU cores" if self.gpu_cores else ""
        return f"{self.name}{cores}"


class ChipRow(NamedTuple):
    """One variant of a chip, the RAM it is sold with, and where its figures stand."""

    chip: Chip
    ram_options_gib: tuple[int, ...]
    sources: str


@functools.cache
def chip_rows(name: str | None = None) -> tuple[ChipRow, ...]:
    """Return every variant of a chip, such as ``M3 Max``; None returns the whole table."""
    rows = read_csv("apple_chips.csv")
    return tuple(_row(cells) for cells in rows if name in (None, cells["chip"]))


def _row(cells: Mapping[str, str]) -> ChipRow:
    generation = cells["generation"]
    chip = Chip.model_construct(
        name=cells["chip"],
        family=cells["chip"][0],
        generation=int(generation.lstrip("AM")),
        tier=cells["tier"],
        performance_cores=int(cells["performance_cores"]),
        efficiency_cores=int(cells["efficiency_cores"]),
        gpu_cores=int(cells["gpu_cores"]),
        memory_bandwidth_gbs=float(cells["memory_bandwidth_gbs"]),
        fp32_tflops=float(cells["gpu_fp32_tflops"]) if cells["gpu_fp32_tflops"] else None,
        metal_family=cells["metal_family"],
        bf16_native=cells["bf16_native"] == "yes",
        confidence=cells["confidence"],
    )
    return ChipRow(
        chip=chip,
        ram_options_gib=tuple(int(size) for size in cells["ram_options_gib"].split("|")),
        sources=cells["sources"],
    )


def parse_chip(
    brand: str,
    *,
    gpu_cores: int | None = None,
    cpu_cores: int | None = None,
    ram_gib: int | None = None,
) -> Chip | None:
    """Return the Apple chip that a brand string names, or None if it names none.

    Args:
        brand: ``Apple M3 Max``, ``M1``, ``Apple M1 (Virtual)``, ``Apple processor``.
        gpu_cores: GPU cores, if known, to tell variants apart.
        cpu_cores: the sum of performance and efficiency cores, if known.
        ram_gib: RAM in GiB, if known; some variants are sold with some sizes only.
    """
    if re.search(_FOREIGN, brand):
        return None
    match = re.search(_NAME, brand)
    if match is None:
        return (
            Chip.model_construct(name=" ".join(brand.split())[:60])
            if re.search(_APPLE, brand)
            else None
        )
    tier = (match[3] or "base").lower()
    name = f"{match[1].upper()}{int(match[2])}" + ("" if tier == "base" else f" {tier.title()}")
    variants = list(chip_rows(name))
    if not variants:
        return Chip.model_construct(
            name=name, family=match[1].upper(), generation=int(match[2]), tier=tier
        )
    if "(virtual)" in brand.lower():
        return _known(variants).model_copy(update=_VIRTUAL)
    variants = _narrow(variants, [row.chip.gpu_cores == gpu_cores for row in variants])
    cpus = [_cpu_cores(row.chip) == cpu_cores for row in variants]
    variants = _narrow(variants, cpus)
    variants = _narrow(variants, [ram_gib in row.ram_options_gib for row in variants])
    return _known(variants)


# A guest gets a share of the cores and of the memory, so the chip's figures do not apply.
_VIRTUAL: dict[str, None] = dict.fromkeys(
    ("performance_cores", "efficiency_cores", "gpu_cores", "memory_bandwidth_gbs", "fp32_tflops")
)


def _cpu_cores(chip: Chip) -> int:
    return (chip.performance_cores or 0) + (chip.efficiency_cores or 0)


def _narrow(rows: list[ChipRow], matches: Sequence[bool]) -> list[ChipRow]:
    """Keep the rows that match, or all of them if none does."""
    kept = [row for row, match in zip(rows, matches, strict=True) if match]
    return kept or rows


def _known(rows: Sequence[ChipRow]) -> Chip:
    """Return the chip with the figures on which all rows agree."""
    first = rows[0].chip
    apart = {
        name: None
        for name in Chip.model_fields
        if any(getattr(row.chip, name) != getattr(first, name) for row in rows)
    }
    return first.model_copy(update=apart)
