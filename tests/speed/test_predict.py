"""Which device is faster: published cases, invariants, and when a prediction is sure."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.data import read_toml
from mpskit.errors import ArgumentTypeError
from mpskit.host.chips import chip_rows
from mpskit.speed import Workload, predict_speedup
from mpskit.speed.chip_rates import ChipSpeed
from mpskit.speed.predict import (
    Constants,
    OpClass,
    evidence,
    half_gains,
    launch_seconds,
    predict_with,
    step_seconds,
    wait_seconds,
)

CLASSES = [*read_toml("speed.toml")["class"], "unheard of", None]
CHIPS = [*sorted({row.chip.name for row in chip_rows()}), "M40 Ultra", "Apple M1 (Virtual)", None]
AMOUNTS = st.none() | st.floats(1, 1e16)
WORKLOADS = st.builds(
    Workload,
    flops=AMOUNTS,
    bytes_moved=AMOUNTS,
    launches=st.none() | st.integers(1, 10**5),
    params=st.none() | st.integers(0, 10**11),
    dtype=st.sampled_from([None, "float32", "bfloat16", "float16"]),
    op_class=st.sampled_from(CLASSES),
    training=st.sampled_from([None, True, False]),
    torch_version=st.sampled_from([None, "1.13.1", "2.2", "2.14.0", "2.15.0.dev20260913", "mine"]),
)


# Far from 1: what sources agree on.
@pytest.mark.parametrize(
    ("facts", "chip", "faster"),
    [
        ({"op_class": "gemm", "flops": 6.9e10, "bytes_moved": 2e8, "launches": 1}, "M4 Pro", "mps"),
        ({"op_class": "conv", "flops": 2.8e9, "bytes_moved": 2.9e8, "launches": 1}, "M3", "mps"),
        ({"op_class": "softmax", "bytes_moved": 5e8, "launches": 1}, "M2 Max", "mps"),
        ({"op_class": "tiny", "bytes_moved": 8, "launches": 1}, "M1 Pro", "cpu"),
        ({"op_class": "gather", "bytes_moved": 2e4, "launches": 1}, "M1 Ultra", "cpu"),
        ({"op_class": "transformer", "cpu_seconds": 5.0}, "M3 Pro", "mps"),
        ({"op_class": "transformer", "cpu_seconds": 1e-3}, "M3 Pro", "cpu"),
        ({"op_class": "cnn", "cpu_seconds": 1.5}, "M5 Pro", "mps"),
        ({"op_class": "llm_decode", "launches": 1800, "cpu_seconds": 0.0125}, "M4", "cpu"),
        ({"op_class": "rnn", "launches": 1000, "cpu_seconds": 5e-3}, None, "cpu"),
        ({"cpu_seconds": 1e-4}, None, "cpu"),
        ({"cpu_seconds": 10.0}, None, "mps"),
    ],
)
def test_published_cases(facts, chip, faster):
    prediction = predict_speedup(Workload(**facts), chip)
    assert ("mps" if prediction.mps_speedup > 1 else "cpu") == faster, prediction
    assert prediction.basis == ("cpu-step" if "cpu_seconds" in facts else "static")


@pytest.mark.parametrize(
    ("facts", "bound"),
    [
        ({"op_class": "tiny", "bytes_moved": 8, "launches": 1}, "synchronisation"),
        ({"op_class": "llm_decode", "bytes_moved": 1e6, "launches": 2000}, "launches"),
        ({"op_class": "gemm", "flops": 1e13, "launches": 10}, "work"),
    ],
)
def test_what_bounds_mps(facts, bound):
    assert predict_speedup(Workload(**facts), "M2").bound == bound


@pytest.mark.parametrize("op_class", CLASSES)
def test_nothing_known_is_not_sure(op_class):
    for chip in CHIPS:
        for params in (None, 10**9):
            prediction = predict_speedup(Workload(op_class=op_class, params=params), chip)
            assert prediction.basis == "static"
            assert not prediction.sure, prediction


def test_sure_needs_a_known_chip_and_every_count():
    facts = {"op_class": "conv", "flops": 1e11, "bytes_moved": 1e8, "launches": 1}
    assert predict_speedup(Workload(**facts), "M3").sure
    assert not predict_speedup(Workload(**facts), None).sure
    assert not predict_speedup(Workload(**facts), "M40").sure
    for name in ("launches", "op_class"):
        assert not predict_speedup(Workload(**{**facts, name: None}), "M3").sure


def test_a_class_without_figures_is_predicted_like_none():
    unheard = predict_speedup(Workload(op_class="unheard of", cpu_seconds=0.1), "M3")
    assert unheard == predict_speedup(Workload(cpu_seconds=0.1), "M3")
    assert unheard.op_class is None


def test_launching_cost_more_before_torch_2():
    now, then = (
        predict_speedup(Workload(launches=500, cpu_seconds=0.02, torch_version=version), "M1")
        for version in ("2.13.0", "1.12.1")
    )
    assert then.mps_seconds == pytest.approx(5 * now.mps_seconds)


def test_training_launches_more_where_nobody_counted():
    forward, step = (
        predict_speedup(Workload(op_class="cnn", cpu_seconds=0.01, training=training), "M1")
        for training in (False, True)
    )
    assert step.launches == 3 * forward.launches


@given(WORKLOADS, st.sampled_from(CHIPS))
def test_any_workload_and_chip_gives_a_number(workload, chip):
    prediction = predict_speedup(workload, chip)
    assert 0 < prediction.mps_speedup < math.inf
    assert prediction.mps_speedup == prediction.cpu_seconds / prediction.mps_seconds
    assert prediction.basis == "static"


@given(WORKLOADS, st.sampled_from(CHIPS), st.floats(1e-7, 1e3), st.floats(1, 1e4))
def test_a_longer_cpu_step_never_speaks_against_mps(workload, chip, seconds, factor):
    short, long = (
        predict_speedup(workload.model_copy(update={"cpu_seconds": time}), chip)
        for time in (seconds, seconds * factor)
    )
    assert long.mps_speedup >= short.mps_speedup * (1 - 1e-9)
    assert long.cpu_seconds == seconds * factor


@given(WORKLOADS, st.sampled_from(CHIPS), st.floats(1e-6, 10), st.integers(1, 1000))
def test_more_launches_never_speak_for_mps_after_a_bare_cpu_step(workload, chip, seconds, factor):
    bare = {"flops": None, "bytes_moved": None, "cpu_seconds": seconds}
    few, many = (
        predict_speedup(workload.model_copy(update={**bare, "launches": launches}), chip)
        for launches in (10, 10 * factor)
    )
    assert many.mps_speedup <= few.mps_speedup


@given(WORKLOADS, st.sampled_from(CHIPS))
def test_mps_waits_and_launches_at_least(workload, chip):
    cost = read_toml("speed.toml")["cost"]
    prediction = predict_speedup(workload, chip)
    least = cost["mps_sync"] + prediction.launches * cost["mps_launch"]
    assert prediction.mps_seconds >= least * (1 - 1e-9)


def test_half_precision_favours_mps_in_arithmetic():
    facts = {"op_class": "gemm", "flops": 1e12, "launches": 1}
    full, half = (predict_speedup(Workload(**facts, dtype=d), "M3") for d in ("fp32", "bf16"))
    assert half.mps_speedup > full.mps_speedup


@pytest.mark.parametrize("workload", [None, {"flops": 1}, "gemm"])
def test_no_workload(workload):
    with pytest.raises(ArgumentTypeError, match="a workload is") as caught:
        predict_speedup(workload, "M1")
    assert caught.value.given is workload


def test_str_says_which_how_much_and_how_sure():
    prediction = predict_speedup(Workload(op_class="llm_decode", launches=1800, cpu_seconds=0.01))
    assert str(prediction).startswith("CPU ")
    assert "by cpu-step" in str(prediction)
    assert ("not sure" in str(prediction)) is not prediction.sure


def test_the_bundled_constants_keep_the_invariants():
    table = read_toml("speed.toml")
    assert 0 <= table["cost"]["cpu_correction"] <= 1
    assert 0 <= table["cost"]["cpu_bandwidth_power"] <= 1
    assert table["sure"]["nothing"] == {"mps": math.inf, "cpu": math.inf}
    assert min(ratio for ratios in table["sure"].values() for ratio in ratios.values()) > 1
    figures = [value for row in table["class"].values() for value in row.values()]
    assert all(0 < value < math.inf for value in figures)


# Figures with which a time can be computed in the head.
CHIP = ChipSpeed(
    name="made up",
    known=True,
    cpu_tflops=1.0,
    gpu_tflops=10.0,
    cpu_bandwidth_gbs=400.0,  # 200 count of it, by the power below
    gpu_bandwidth_gbs=800.0,
)
ROW = OpClass(mps_slowdown=5.0, cpu_slowdown=2.0, work_speedup=10.0, launches=7.0, cpu_launch=0.2)
MADE_UP = Constants(
    mps_sync=1.0,
    mps_launch=0.01,
    cpu_launch=0.1,
    cpu_bandwidth_power=0.5,
    cpu_correction=0.5,
    training_launches=3.0,
    torch1_overhead=2.0,
    half_cpu=0.5,
    half_mps=2.0,
    sure={
        "counts": {"mps": 2.0, "cpu": 3.0},
        "nothing": {"mps": 9.0, "cpu": 9.0},
        "cpu_step": {"mps": 9.0, "cpu": 9.0},
        "cpu_step_and_counts": {"mps": 9.0, "cpu": 9.0},
    },
    classes={"": ROW, "mlp": OpClass(1.0, 1.0, 1.0, 1.0, 0.0)},
)


@pytest.mark.parametrize(
    ("facts", "cpu", "mps", "bound"),
    [
        ({"flops": 1e12}, 1 + 2, 1 + 0.5, "synchronisation"),
        ({"bytes_moved": 2e12}, 1 + 20, 1 + 12.5, "work"),
        ({"flops": 1e12, "bytes_moved": 2e12}, 1 + 20, 1 + 12.5, "work"),
        ({"flops": 1e9, "launches": 1000}, 100.002, 1 + 10, "launches"),
        ({"flops": 1e12, "dtype": "float16"}, 1 + 4, 1 + 0.25, "synchronisation"),
        ({"flops": 1e12, "dtype": "float64"}, 1 + 2, 1 + 0.5, "synchronisation"),
        # Nine times as long as predicted: three times that on the GPU.
        ({"flops": 1e12, "cpu_seconds": 27.0}, 27, 1 + 1.5, "work"),
        # Without counts: the parameters are read once, and the GPU is ten times as fast.
        ({"params": 10**11}, 1 + 4, 1 + 0.5, "synchronisation"),
        ({"params": 10**11, "dtype": "bfloat16"}, 1 + 2, 1 + 0.3, "synchronisation"),
        ({"launches": 100}, 20, 1 + 2, "work"),
        ({"launches": None}, 7 * 0.2, 1 + 0.14, "synchronisation"),
        ({"launches": None, "training": True}, 21 * 0.2, 1 + 0.42, "synchronisation"),
        ({"launches": 100, "cpu_seconds": 5.0}, 5, 1 + 1, "synchronisation"),
        ({"flops": 1e12, "torch_version": "1.13.1"}, 1 + 2, 2 + 0.5, "synchronisation"),
        ({"flops": 1e12, "torch_version": "2.0"}, 1 + 2, 1 + 0.5, "synchronisation"),
        ({"flops": 1e12, "op_class": "mlp"}, 1 + 1, 1 + 0.1, "synchronisation"),
        ({"flops": 1e12, "op_class": "unheard of"}, 1 + 2, 1 + 0.5, "synchronisation"),
    ],
)
def test_times_by_hand(facts, cpu, mps, bound):
    found = step_seconds(MADE_UP, Workload(**({"launches": 10} | facts)), CHIP)
    assert found == (pytest.approx(cpu), pytest.approx(mps), bound)


def test_bandwidths_are_alike_at_100_gb_a_second():
    chip = CHIP.model_copy(update={"cpu_bandwidth_gbs": 100.0})
    cpu, _, _ = step_seconds(MADE_UP, Workload(bytes_moved=1e11, launches=10), chip)
    assert cpu == pytest.approx(1 + 2)


@pytest.mark.parametrize(
    ("facts", "known", "row"),
    [
        ({"flops": 1, "launches": 1, "op_class": "mlp"}, True, "counts"),
        ({"bytes_moved": 1, "launches": 1, "op_class": "mlp"}, True, "counts"),
        ({"flops": 1, "launches": 1, "op_class": "mlp"}, False, "nothing"),
        ({"flops": 1, "launches": 1}, True, "nothing"),
        ({"flops": 1, "op_class": "mlp"}, True, "nothing"),
        ({"launches": 1, "op_class": "mlp"}, True, "nothing"),
        ({"cpu_seconds": 1, "op_class": "mlp"}, True, "cpu_step"),
        (
            {"cpu_seconds": 1, "flops": 1, "launches": 1, "op_class": "mlp"},
            False,
            "cpu_step_and_counts",
        ),
    ],
)
def test_what_a_prediction_rests_on(facts, known, row):
    chip = CHIP.model_copy(update={"known": known})
    assert evidence(Workload(**facts), chip) == row


@pytest.mark.parametrize(
    ("from_mps", "from_cpu", "sync", "sure"),
    [
        (1.999, 9.0, 0.9, True),
        (2.001, 1.0, 0.9, False),
        (1.0, 1.249, 2.4, True),
        (1.0, 1.251, 2.4, False),
    ],
)
def test_it_is_sure_from_the_ratio_of_the_faster_device_on(from_mps, from_cpu, sync, sure):
    """The CPU takes 2 s, MPS 1 s or 2.5 s: a ratio of 2 for MPS, or of 1.25 for the CPU."""
    rows = MADE_UP.sure | {"counts": {"mps": from_mps, "cpu": from_cpu}}
    constants = dataclasses.replace(MADE_UP, sure=rows, mps_sync=sync)
    found = predict_with(constants, Workload(flops=1e12, launches=10, op_class="mlp"), CHIP)
    assert found.cpu_seconds == pytest.approx(2)
    assert found.mps_speedup == pytest.approx(2 / (sync + 0.1))
    assert found.sure is sure


def test_a_prediction_in_words():
    workload = Workload(flops=1e12, launches=10, op_class="mlp")
    found = predict_with(dataclasses.replace(MADE_UP, mps_sync=0.9), workload, CHIP)
    assert str(found) == (
        "MPS 2.0 times faster by static "
        "(CPU 2e+03 ms, MPS 1e+03 ms, most of it synchronisation; made up)"
    )
    slow = predict_with(dataclasses.replace(MADE_UP, mps_sync=2.4), workload, CHIP)
    assert str(slow).startswith("CPU 1.2 times faster by static, not sure (CPU 2e+03 ms, MPS 2.5e")
    assert (slow.launches, slow.op_class, slow.basis) == (10, "mlp", "static")


def test_what_a_launch_and_a_wait_cost():
    costs = read_toml("speed.toml")["cost"]
    assert launch_seconds(3, "cpu") == 3 * costs["cpu_launch"]
    assert launch_seconds(3) == 3 * costs["mps_launch"]
    assert wait_seconds() == costs["mps_sync"]
    assert half_gains() == (costs["half_cpu"], costs["half_mps"])
