"""The rates of chips: known ones against published measurements, and stand-ins for others."""

import pytest

from mpskit.errors import ArgumentTypeError
from mpskit.host.chips import chip_rows, parse_chip
from mpskit.speed import chip_speed


# github.com/chsasank/device-benchmarks: fp32 matmul TFLOPS CPU, then copy GB/s CPU and GPU.
@pytest.mark.parametrize(
    ("name", "cpu_tflops", "cpu_gbs", "gpu_gbs"),
    [
        ("M1", 0.8, 46, 56),
        ("M1 Pro", None, 96, 176),
        ("M2", 1.0, 60, 90),
        ("M2 Ultra", 4.0, 311, 636),
        ("M4 Max", 2.85, 336, 396),
    ],
)
def test_rates_lie_near_the_measured_ones(name, cpu_tflops, cpu_gbs, gpu_gbs):
    speed = chip_speed(name)
    assert (speed.name, speed.known) == (name, True)
    assert cpu_tflops is None or speed.cpu_tflops == pytest.approx(cpu_tflops, rel=0.05)
    assert speed.cpu_bandwidth_gbs == pytest.approx(cpu_gbs, rel=0.35)
    assert speed.gpu_bandwidth_gbs == pytest.approx(gpu_gbs, rel=0.15)


@pytest.mark.parametrize(
    ("chip", "stands_in", "known"),
    [
        ("Apple M3 Max", "M3 Max", True),
        ("Apple M1 (Virtual)", "M1", False),
        ("M9 Ultra", None, False),
        ("M12", None, False),
        ("M8 Extreme", "M2 Pro", False),
        ("A18 Pro", "M2 Pro", False),
        ("Intel(R) Core(TM) i7", "M2 Pro", False),
        ("Apple processor", "M2 Pro", False),
        ("", "M2 Pro", False),
        (None, "M2 Pro", False),
    ],
)
def test_chips_without_figures(chip, stands_in, known):
    speed = chip_speed(chip)
    assert speed.known is known
    assert stands_in is None or speed.name == stands_in
    assert min(speed.cpu_tflops, speed.gpu_tflops, speed.cpu_bandwidth_gbs) > 0


@pytest.mark.parametrize("tier", ["base", "pro", "max", "ultra"])
def test_a_future_chip_is_like_the_newest_of_its_tier(tier):
    newest = [row.chip for row in chip_rows() if row.chip.tier == tier][-1]
    suffix = "" if tier == "base" else f" {tier.title()}"
    assert chip_speed(f"M40{suffix}") == chip_speed(newest.name).model_copy(update={"known": False})


def test_core_counts_tell_variants_apart():
    small, large = parse_chip("M4 Max", gpu_cores=32), parse_chip("M4 Max", gpu_cores=40)
    middle = chip_speed("M4 Max").gpu_tflops
    assert chip_speed(small).gpu_tflops < middle < chip_speed(large).gpu_tflops


def test_every_chip_of_the_table_has_a_faster_gpu():
    for row in chip_rows():
        if row.chip.fp32_tflops:
            speed = chip_speed(row.chip)
            assert speed.known, row
            assert speed.gpu_tflops > speed.cpu_tflops > 0, row
            assert speed.gpu_bandwidth_gbs > speed.cpu_bandwidth_gbs > 0, row


@pytest.mark.parametrize("chip", [3, b"M1", object(), ["M1"]])
def test_neither_a_name_nor_a_chip(chip):
    with pytest.raises(ArgumentTypeError, match="a chip is a name") as caught:
        chip_speed(chip)
    assert caught.value.given is chip


def test_str():
    assert str(chip_speed("M1")).startswith("M1: CPU 0.8 TFLOPS and 34 GB/s, GPU ")
