"""The chip table, unknown chips, and the CUDA cards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.host.chips import Chip, chip_rows, parse_chip


@pytest.mark.parametrize(
    ("brand", "name", "generation", "tier"),
    [
        ("Apple M1", "M1", 1, "base"),
        ("apple m3 max", "M3 Max", 3, "max"),
        ("M4 Pro", "M4 Pro", 4, "pro"),
        ("Apple M3 Ultra", "M3 Ultra", 3, "ultra"),
        ("Apple M9 Ultra", "M9 Ultra", 9, "ultra"),
        ("Apple M10", "M10", 10, "base"),
        ("Apple M7 Extreme", "M7 Extreme", 7, "extreme"),
        ("Apple A18 Pro", "A18 Pro", 18, "phone"),
        ("Apple M1 (Virtual)", "M1", 1, "base"),
        ("Apple M1 (Mac mini 2020)", "M1", 1, "base"),
        ("Apple processor", "Apple processor", None, None),
        ("VirtualApple @ 2.50GHz processor by Apple", "VirtualApple @ 2.50GHz processor by Apple", None, None),
    ],
)  # fmt: skip
def test_names(brand, name, generation, tier):
    chip = parse_chip(brand)
    assert (chip.name, chip.generation, chip.tier) == (name, generation, tier)


@pytest.mark.parametrize(
    "brand", ["", "Intel(R) Core(TM) m3-7Y32 CPU @ 1.10GHz", "AMD Ryzen 9", "arm", "Cortex-A72"]
)
def test_no_apple_chip(brand):
    assert parse_chip(brand) is None


def test_an_unknown_chip_has_no_figures():
    chip = parse_chip("Apple M9 Ultra", gpu_cores=80, ram_gib=512)
    assert chip == Chip(name="M9 Ultra", family="M", generation=9, tier="ultra")


def test_figures_are_known_only_where_the_variants_agree():
    chip = parse_chip("Apple M3 Max")
    assert chip.gpu_cores is None
    assert chip.memory_bandwidth_gbs is None
    assert chip.metal_family == "Apple9"
    assert chip.bf16_native is True


@pytest.mark.parametrize(
    ("facts", "cores", "bandwidth"),
    [
        ({"gpu_cores": 30}, 30, 307.2),
        ({"cpu_cores": 16}, 40, 409.6),
        ({"ram_gib": 64}, 40, 409.6),
        ({"ram_gib": 36}, 30, 307.2),
        ({"gpu_cores": 40, "ram_gib": 7}, 40, 409.6),
    ],
)
def test_a_fact_tells_the_variants_apart(facts, cores, bandwidth):
    chip = parse_chip("Apple M3 Max", **facts)
    assert (chip.gpu_cores, chip.memory_bandwidth_gbs) == (cores, bandwidth)


def test_a_guest_is_not_the_chip():
    chip = parse_chip("Apple M1 (Virtual)")
    assert chip.fp32_tflops is None
    assert chip.performance_cores is None
    assert chip.metal_family == "Apple7"


def test_every_row_is_whole():
    rows = chip_rows()
    assert {row.chip.generation for row in rows if row.chip.family == "M"} == {1, 2, 3, 4, 5, 6}
    for row in rows:
        assert row.sources
        assert row.ram_options_gib == tuple(sorted(row.ram_options_gib))
        assert row.chip.gpu_cores > 0
        assert row.chip.memory_bandwidth_gbs > 50
        assert parse_chip(f"Apple {row.chip.name}").name == row.chip.name


@given(st.text(), st.integers() | st.none(), st.integers() | st.none())
def test_any_text_is_a_brand(text, cores, ram):
    for brand in (text, f"Apple {text}", f"Apple M{text}"):
        chip = parse_chip(brand, gpu_cores=cores, ram_gib=ram)
        assert chip is None or chip.name
