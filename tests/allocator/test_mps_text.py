"""The allocator's texts, against messages that people posted."""

from __future__ import annotations

import math

import pytest

from mpskit._base.sizes import GIB, KIB, MIB
from mpskit.allocator.mps_text import buffer_text, oom_text, size_text, watermark_text


@pytest.mark.parametrize(
    ("size", "torch", "text"),
    [
        (0, "2.13.0", "0 bytes"),
        (256, "2.4.0", "256 bytes"),
        (KIB, "2.13.0", "1024 bytes"),
        (KIB + 512, "2.13.0", "1.50 KiB"),
        (KIB + 512, "2.7.1", "1.50 KB"),
        (MIB, "2.8.0", "1024.00 KiB"),
        (GIB, "2.7.1", "1024.00 MB"),
        (GIB + 1, "2.8.0", "1.00 GiB"),
        (2048 * GIB, "2.13.0", "2048.00 GiB"),
    ],
)
def test_sizes_are_printed_as_torch_prints_them(size: int, torch: str, text: str) -> None:
    assert size_text(size, torch) == text


def _limit(ram_gib: int, fraction: float) -> int:
    return int(1.7 * math.ceil(ram_gib * GIB / 16384 * fraction) * 16384)


def test_a_posted_message_of_a_16_gib_mac_before_2_8() -> None:
    # pinokio#941: torch with "GB", M1 with 16 GiB, macOS 14.7.
    text = oom_text(
        "2.6.0",
        allocated=16 * GIB + 1,
        other=round(3.31 * GIB),
        max_allowed=_limit(16, 2 / 3),
        requested=256,
        pool="shared",
    )
    assert text == (
        "MPS backend out of memory (MPS allocated: 16.00 GB, other allocations: 3.31 GB, "
        "max allowed: 18.13 GB). Tried to allocate 256 bytes on shared pool. "
        "Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations "
        "(may cause system failure)."
    )


def test_without_a_limit_the_text_has_neither_limit_nor_advice() -> None:
    text = oom_text(
        "2.14.0", allocated=GIB + MIB, other=0, max_allowed=None, requested=2 * GIB, pool="shared"
    )
    assert text == (
        "MPS backend out of memory (MPS allocated: 1.00 GiB, other allocations: 0 bytes). "
        "Tried to allocate 2.00 GiB on shared pool."
    )


def test_the_short_texts() -> None:
    assert buffer_text(9 * GIB, "2.13.0") == "Invalid buffer size: 9.00 GiB"
    assert watermark_text("low", 1.4) == "invalid low watermark ratio 1.4"
    assert watermark_text("high", 2.5) == "invalid high watermark ratio 2.5"
    assert watermark_text("high", -1.0) == "invalid high watermark ratio -1"
