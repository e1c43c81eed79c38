"""precision_for: by torch, macOS and chip; autocast and GradScaler that work on every torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging

import pytest
import torch

import mpskit
from mpskit import autocast, grad_scaler, precision_for, simulate
from mpskit.backends import versions
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host import Host, Readings
from mpskit.training import precision
from mpskit.training.precision import Precision, choose


def mac(chip, macos="15.6"):
    return Host.from_readings(
        Readings(
            system="Darwin",
            machine="arm64",
            product_version=macos,
            sysctl={"machdep.cpu.brand_string": f"Apple {chip}", "hw.optional.arm64": "1"},
        )
    )


# torch, macOS, bfloat16 native -> autocast, scaler needed, scaler possible, inference
MPS = [
    ("2.2.2", "14.5", True, None, False, False, "float16"),
    ("2.2.2", "13.5", False, None, False, False, "float16"),
    ("2.4.1", "14.5", True, None, False, False, "bfloat16"),
    ("2.4.1", "13.5", True, None, False, False, "float16"),
    # float16 only, and no GradScaler: unsafe to train with
    ("2.5.1", "15.6", True, None, False, False, "bfloat16"),
    ("2.5.1", "15.6", False, None, False, False, "float16"),
    ("2.6.0", "13.5", True, None, False, False, "float16"),
    ("2.6.0", "15.6", True, "bfloat16", False, False, "bfloat16"),
    ("2.7.1", "15.6", False, None, False, False, "float16"),
    ("2.8.0", "15.6", True, "bfloat16", False, True, "bfloat16"),
    ("2.8.0", "15.6", False, None, False, True, "float16"),
    ("2.8.0", "13.5", True, "float16", True, True, "float16"),
    ("2.9.1", "14.0", True, "bfloat16", False, True, "bfloat16"),
    ("2.13.0", "15.6", False, None, False, True, "float16"),
    ("2.13.0", "26.1", True, "bfloat16", False, True, "bfloat16"),
    ("2.13.0", None, None, "bfloat16", False, True, "bfloat16"),
    ("2.15.0", "15.0", True, "bfloat16", False, True, "bfloat16"),
    # this torch has no MPS on so old a macOS
    ("2.15.0", "14.7", True, None, False, False, "float32"),
    ("2.13.0", "13.6", True, None, False, False, "float32"),
]


@pytest.mark.parametrize(
    ("torch_version", "macos", "native", "cast", "needed", "possible", "inference"), MPS
)
def test_mps_by_torch_macos_and_chip(
    torch_version, macos, native, cast, needed, possible, inference
):
    found = choose("mps", torch_version, macos=macos, bf16_native=native)
    assert found.dtype == "float32"
    assert found.autocast_dtype == cast
    assert (found.grad_scaler_needed, found.grad_scaler_possible) == (needed, possible)
    assert found.grad_scaler is (needed and possible)
    assert found.inference_dtype == inference
    assert "float64" not in found.storage_dtypes
    assert found.reasons


@pytest.mark.parametrize(
    ("chip", "cast"),
    [("M1", None), ("M2 Max", None), ("M3", "bfloat16"), ("M5 Pro", "bfloat16"),
     ("A18 Pro", "bfloat16"), ("M9 Ultra", "bfloat16")],
)  # fmt: skip
def test_the_chip_decides_what_is_fast(chip, cast):
    assert precision_for("mps", mac(chip), torch_version="2.13.0").autocast_dtype == cast


def test_float32_is_advised_where_autocast_costs_memory_and_the_reason_is_given():
    found = precision_for("mps", mac("M1"), torch_version="2.13.0")
    assert (found.autocast_dtype, found.inference_dtype) == (None, "float16")
    assert "float16 costs memory" in str(found)
    assert "float16" in found.autocast_dtypes


def test_the_figures_of_that_reason_are_the_estimates():
    def need(precision):
        return mpskit.estimate_from_config(
            "Qwen/Qwen2.5-1.5B",
            batch_size=2,
            seq_len=128,
            lora=8,
            precision=precision,
            machine="m1-16gb",
            torch_version="2.13.0",
        )

    whole, mixed = need("fp32"), need("fp16-mixed")
    assert whole.fits("m1-16gb").answer == "fits"
    assert mixed.fits("m1-16gb").answer != "fits"
    assert mixed.fits("m1-16gb").margin_bytes < 0
    usable = mpskit.memory_budget(machine="m1-16gb").usable_bytes
    figures = [f"{size / 2**30:.1f}" for size in (mixed.driver_bytes, whole.driver_bytes, usable)]
    reason = precision_for(machine="m1-16gb", torch_version="2.13.0").reasons[0]
    assert "estimated {} GiB, {} in float32, of {} that".format(*figures) in reason
    assert need("bf16").peak_bytes < whole.peak_bytes < mixed.peak_bytes


@pytest.mark.parametrize(("native", "said"), [(None, True), (True, False), (False, False)])
def test_a_mac_whose_chip_is_not_known_gets_an_answer_with_its_assumption(native, said):
    found = choose("mps", "2.13.0", bf16_native=native)
    assert any("chip is unknown" in reason for reason in found.reasons) is said
    assert not any("chip" in reason for reason in choose("cuda", "2.13.0").reasons)


def test_a_macos_that_nobody_knows_is_taken_for_new_enough():
    assert (
        precision_for("mps", mac("M4", "27.0"), torch_version="2.15.0").autocast_dtype == "bfloat16"
    )
    assert choose("mps", "2.13.0", macos="strange").autocast_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("device", "native", "cast", "scaled", "inference"),
    [
        ("cuda", True, "bfloat16", False, "bfloat16"),
        ("cuda", False, "float16", True, "float16"),
        ("cuda", None, "float16", True, "float16"),
        ("xpu", None, "bfloat16", False, "bfloat16"),
        ("cpu", None, None, False, "float32"),
        ("hpu", None, None, False, "float32"),
    ],
)
@pytest.mark.parametrize("torch_version", ["2.2.2", "2.13.0", "2.15.0"])
def test_other_devices(device, native, cast, scaled, inference, torch_version):
    found = choose(device, torch_version, bf16_native=native)
    assert (found.autocast_dtype, found.grad_scaler) == (cast, scaled)
    assert found.inference_dtype == inference


@pytest.mark.parametrize("device", ["mps", "cuda", "xpu", "cpu"])
@pytest.mark.parametrize("torch_version", [f"2.{minor}.0" for minor in range(2, 16)])
def test_no_combination_advises_what_is_unsafe_or_missing(torch_version, device):
    systems = ["13.0", "14.0", "15.6", "26.0", None]
    for macos, native in itertools.product(systems, [True, False, None]):
        found = choose(device, torch_version, macos=macos, bf16_native=native)
        assert found.dtype == "float32"
        assert found.inference_dtype in found.storage_dtypes
        if found.autocast_dtype is not None:
            assert found.autocast_dtype in found.autocast_dtypes
            assert found.autocast_dtype == "bfloat16" or found.grad_scaler


def test_a_result_is_for_people_and_for_programs():
    found = choose("cuda", "2.13.0", bf16_native=False)
    assert "autocast to float16, with GradScaler" in str(found)
    assert json.loads(found.model_dump_json())["autocast_dtype"] == "float16"
    assert Precision.model_validate_json(found.model_dump_json()) == found
    assert found.torch_dtype is torch.float32
    assert found.torch_autocast_dtype is torch.float16
    assert found.torch_inference_dtype is torch.float16
    assert choose("cpu", "2.13.0").torch_autocast_dtype is None


def test_the_installed_torch_and_this_machine_are_the_defaults():
    assert precision_for("cpu").autocast_dtype is None
    assert precision_for(torch.device("cuda:0")).device == "cuda"
    assert precision_for("mps").device == "mps"


@pytest.mark.parametrize("bad", [3, ["cpu"]])
def test_a_device_of_the_wrong_type(bad):
    with pytest.raises(ArgumentTypeError):
        precision_for(bad)


def test_a_machine_has_a_device_of_its_own():
    assert precision_for(machine="m1-8gb") == precision_for("mps", "m1-8gb")
    assert precision_for(machine="intel-mac-32gb").device == "cpu"
    assert precision_for().device == mpskit.get_optimal_device().device.type


@pytest.mark.parametrize(
    ("card", "cast", "scaled", "inference"),
    [
        ("T4", "float16", True, "float16"),
        ("P100", "float16", True, "float16"),
        ("RTX 3060", "bfloat16", False, "bfloat16"),
        ("A100", "bfloat16", False, "bfloat16"),
    ],
)
def test_a_cuda_card_decides_without_being_there(card, cast, scaled, inference):
    found = precision_for(machine=card, torch_version="2.13.0")
    assert (found.device, found.autocast_dtype) == ("cuda", cast)
    assert (found.grad_scaler, found.inference_dtype) == (scaled, inference)


def test_a_host_that_is_none():
    with pytest.raises(ArgumentTypeError, match="machine"):
        precision_for("mps", 16)


def test_autocast_computes_in_the_dtype_that_was_chosen():
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
    with autocast("cpu", "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with autocast("cpu", torch.float32):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


@pytest.mark.needs_torch("mps.autocast.bfloat16")
@pytest.mark.parametrize("version", [f"2.{minor}.0" for minor in range(2, 16)])
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_autocast_on_mps_never_raises_whatever_the_torch(monkeypatch, caplog, version, dtype):
    monkeypatch.setattr(versions, "torch_version", lambda: version)
    # Until 2.8 torch itself asks the Mac, which is none here.
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
    caplog.set_level(logging.WARNING, "mpskit")
    context = autocast("mps", dtype, host=mac("M4"))
    offered = choose("mps", version, macos="15.6").autocast_dtypes
    works = isinstance(context, torch.autocast)
    if dtype:
        assert works is (dtype in offered)
        assert bool(caplog.records) is not works
    else:
        assert works is ("bfloat16" in offered)
    if not works:
        assert isinstance(context, contextlib.nullcontext)


@pytest.mark.parametrize("bad", ["float64", "int8", "nonsense"])
def test_autocast_to_a_dtype_that_is_none(bad):
    with pytest.raises(ArgumentError):
        autocast("cpu", bad)
    with pytest.raises(ArgumentTypeError):
        autocast("cpu", 16)


@pytest.mark.needs_torch("mps.grad_scaler")
@pytest.mark.parametrize(
    ("device", "dtype", "chip", "enabled"),
    [
        ("cpu", None, "M1", False),
        ("cpu", "float16", "M1", True),
        ("mps", None, "M1", False),
        ("mps", "float16", "M1", True),
        ("mps", None, "M3", False),
        ("mps", "float16", "M3", True),
        ("mps", "bfloat16", "M1", False),
        ("cuda", None, "M1", torch.cuda.is_available()),
    ],
)
def test_grad_scaler_is_enabled_where_needed(device, dtype, chip, enabled):
    assert grad_scaler(device, dtype, host=mac(chip)).is_enabled() is enabled


def test_grad_scaler_that_cannot_work_is_disabled_and_said(monkeypatch, caplog):
    monkeypatch.setattr(versions, "torch_version", lambda: "2.7.1")
    caplog.set_level(logging.WARNING, "mpskit")
    assert not grad_scaler("mps", "float16", host=mac("M1")).is_enabled()
    assert "GradScaler" in caplog.text


def test_one_loop_serves_with_and_without_a_scaler():
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = grad_scaler("cpu")
    before = model.weight.detach().clone()
    with autocast("cpu"):
        loss = model(torch.ones(2, 4)).pow(2).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [
        pytest.param("m1-8gb", torch.float16, marks=pytest.mark.needs_torch("mps.grad_scaler")),
        ("m4-16gb", torch.bfloat16),
    ],
)
def test_steps_of_mixed_precision_on_a_simulated_mac(machine, dtype):
    torch.manual_seed(0)
    with simulate(machine):
        model = torch.nn.Linear(4, 2).to("mps")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = grad_scaler("mps", dtype)
        assert scaler.is_enabled() is (dtype is torch.float16)
        before = model.weight.detach().clone()
        # The scaler starts at 65536 and skips the steps that overflow until it has come down.
        for _ in range(6):
            with autocast("mps", dtype):
                out = model(torch.ones(3, 4, device="mps"))
            assert out.dtype is dtype
            optimizer.zero_grad()
            scaler.scale(out.float().pow(2).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    ("casts", "said"),
    [
        ({"float16": True}, "bfloat16 is not available; float16"),
        ({"float16": True, "bfloat16": True}, "bfloat16 is emulated or unknown on this GPU"),
    ],
)
def test_why_it_is_float16(casts, said):
    dtype, reason = precision._autocast_dtype("cuda", casts, scaler=True, bf16_native=False)
    assert dtype == "float16"
    assert reason.startswith(said)
