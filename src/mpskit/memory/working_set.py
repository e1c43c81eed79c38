"""Metal's recommended working set as a rule, for when Metal cannot be asked.

``device.recommendedMaxWorkingSetSize``, which ``torch.mps.recommended_max_memory()`` returns, as a
pure function of the machine's memory and macOS version. The rule was fitted to public reports of 84
Macs and matches each one that gives exact bytes; the chip, M1 to M5, showed no influence. The table
and its sources are in ``data/working_set.csv``. A live figure always takes precedence.
"""

from __future__ import annotations

import functools
import re
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from mpskit._base.arguments import shown, wrong_type
from mpskit._base.data import read_csv
from mpskit._base.sizes import GIB, MIB, check_size, format_bytes
from mpskit._base.values import Value
from mpskit.allocator.watermarks import limit_bytes
from mpskit.errors import ArgumentError
from mpskit.host.kinds import DEFAULT_MACOS, HostKind

if TYPE_CHECKING:
    from mpskit.host import Host

__all__ = [
    "Confidence",
    "WorkingSet",
    "default_limits",
    "limit_bytes",
    "recommended_bytes",
    "rule_of",
]

Confidence: TypeAlias = Literal["high", "medium", "low"]

_PAGE = 16384
_WIRED = "sysctl iogpu.wired_limit_mb"
_MOST_KEPT_BACK = 48 * GIB
# macOS 26 reports itself as 16 to programs built before it.
_COMPATIBILITY = {16: 26}
_VERSION = re.compile(r"\s*(\d{1,3})(?:\.\d{1,3}){0,2}\s*", re.ASCII)


class WorkingSet(Value):
    """What Metal recommends for a machine, in bytes.

    Attributes:
        recommended_bytes: the recommended working set, ``recommendedMaxWorkingSetSize``.
        max_buffer_bytes: the largest single buffer, ``maxBufferLength``; None for a discrete GPU,
            for which there is no report.
        limit_bytes: PyTorch's default hard limit, 1.7 times the recommended working set.
        confidence: ``high`` where this size was reported, ``medium`` where the rule was applied
            to another, ``low`` where there is one report at most.
        source: where the figure comes from.
    """

    recommended_bytes: int
    max_buffer_bytes: int | None
    limit_bytes: int
    confidence: Confidence
    source: str

    def __str__(self) -> str:
        return (
            f"recommended {format_bytes(self.recommended_bytes)}, PyTorch's limit "
            f"{format_bytes(self.limit_bytes)} ({self.confidence} confidence: {self.source})"
        )


class _Row(NamedTuple):
    macos: int
    gib: int
    keep: str
    reported: tuple[int, ...]


def recommended_bytes(
    ram_bytes: int,
    macos: str = DEFAULT_MACOS,
    *,
    wired_limit_bytes: int | None = None,
    vram_bytes: int | None = None,
) -> WorkingSet:
    """Return the recommended working set of a Mac by the rule.

    Args:
        ram_bytes: the machine's memory.
        macos: its macOS version, ``"15.6"`` or ``"26"``. An unknown one gets the nearest known
            rule with low confidence.
        wired_limit_bytes: the override ``sysctl iogpu.wired_limit_mb``, in bytes; None or 0 if it
            is not set. It replaces the working set, not the largest buffer.
        vram_bytes: the memory of an Intel Mac's discrete AMD GPU, which then counts instead.

    Raises:
        ArgumentTypeError: a size is not an int, or ``macos`` is not a string.
        ArgumentError: a size is not positive, or ``macos`` is not a version.
    """
    check_size("ram_bytes", ram_bytes)
    version = _major(macos)
    if vram_bytes is not None:
        check_size("vram_bytes", vram_bytes)
        return _discrete(vram_bytes)
    if wired_limit_bytes not in (None, 0):
        check_size("wired_limit_bytes", wired_limit_bytes)
    row = _row(version, ram_bytes)
    stock = _keep(row.keep, ram_bytes)
    size = wired_limit_bytes or stock
    return WorkingSet.model_construct(
        recommended_bytes=size,
        max_buffer_bytes=stock * 3 // 4 // _PAGE * _PAGE,
        limit_bytes=limit_bytes(size),
        confidence="high" if wired_limit_bytes else _confidence(row, ram_bytes, version),
        source=_WIRED if wired_limit_bytes else f"working-set rule of macOS {row.macos}",
    )


def rule_of(host: Host) -> WorkingSet | None:
    """Apply the rule to a machine; None if it is not a Mac, or its GPU has memory of its own."""
    if not host.is_mac or host.kind is HostKind.INTEL_MAC or host.memory_total_bytes is None:
        return None
    wired, macos = host.wired_limit_bytes, host.os_version or DEFAULT_MACOS
    return recommended_bytes(host.memory_total_bytes, macos, wired_limit_bytes=wired)


@functools.cache
def default_limits() -> tuple[int, ...]:
    """Return PyTorch's default hard limits, in bytes, on Macs of every size that is sold.

    They include hosted runners (7 and 14 GiB) and the AMD cards of Intel Macs.
    """
    sizes = {*(gib for row in _table() for gib in row.reported), 7, 14}
    rules = {str(row.macos) for row in _table()}
    sets = [recommended_bytes(gib * GIB, macos) for gib in sizes for macos in rules]
    cards = [_discrete(gib * GIB) for gib in (4, 8, 16, 32)]
    return tuple(sorted({one.limit_bytes for one in (*sets, *cards)}))


def _discrete(vram: int) -> WorkingSet:
    # 8, 16 and 32 GiB cards report 16 MiB less than they have; the one 4 GiB card reported
    # (Fooocus#1152: 6.80 GB = 1.7 x 4.00 GiB) reports all of it.
    size, known = (vram - 16 * MIB, True) if vram >= 8 * GIB else (vram, False)
    return WorkingSet.model_construct(
        recommended_bytes=size,
        max_buffer_bytes=None,
        limit_bytes=limit_bytes(size),
        confidence="medium" if known else "low",
        source="the GPU's own memory",
    )


def _keep(keep: str, ram: int) -> int:
    """Apply one cell of the table: a fraction of the memory, or all but a quarter of it."""
    if keep == "quarter":
        return ram - min(ram // 4, _MOST_KEPT_BACK)
    # Single precision, rounded up to a page: exact in integers, where floats would round.
    (single,) = struct.unpack("f", struct.pack("f", float(Fraction(keep))))
    return -(-ram * Fraction(single) // _PAGE) * _PAGE


def _confidence(row: _Row, ram: int, version: int) -> Confidence:
    macos = [known.macos for known in _table()]
    if not row.reported or not min(macos) <= version <= max(macos):
        return "low"
    return "high" if ram % GIB == 0 and ram // GIB in row.reported else "medium"


def _row(version: int, ram: int) -> _Row:
    """Return the last row whose macOS and memory are reached; an older macOS gets the first."""
    table = _table()
    era = max((row.macos for row in table if row.macos <= version), default=table[0].macos)
    return [row for row in table if row.macos == era and row.gib * GIB <= ram][-1]


@functools.cache
def _table() -> tuple[_Row, ...]:
    return tuple(_parse(cells) for cells in read_csv("working_set.csv"))


def _parse(cells: dict[str, str]) -> _Row:
    reported = tuple(int(size) for size in cells["reported_gib"].split("|") if size)
    return _Row(int(cells["from_macos"]), int(cells["from_gib"]), cells["keep"], reported)


def _major(macos: str) -> int:
    if not isinstance(macos, str):
        raise wrong_type("macos", "a str such as '15.6'", macos)
    match = _VERSION.fullmatch(macos)
    if match is None:
        raise ArgumentError(
            f"macos={shown(macos)} is not a version: write '15.6' or '26'", given=macos
        )
    major = int(match[1])
    return _COMPATIBILITY.get(major, major)
