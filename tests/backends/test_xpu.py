"""XPU as a full citizen: everything that CUDA has, against a stand-in (``fake_xpu``)."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_xpu import ARC, GIB, stand_in

import mpskit
from mpskit import (
    DeviceUnavailableError,
    dataloader_kwargs,
    empty_cache,
    explain_oom,
    get_optimal_device,
    limit_memory,
    memory_budget,
    memory_snapshot,
    precision_for,
)
from mpskit.allocator import AllocatorLimitError, allocator_for
from mpskit.backends.memory import device_in_use
from mpskit.device import ReasonCode
from mpskit.device.expect import expected_device
from mpskit.errors import DeviceFallbackWarning
from mpskit.estimate import estimate_training_memory
from mpskit.host import Readings, detect_host
from mpskit.memory import limit as limits
from mpskit.system import gpu
from mpskit.system.machine import replace_readings
from mpskit.testing import plugin
from mpskit.training import precision, transfer
from mpskit.training.loader import LoaderFacts, workers_for

MIB = 2**20

pytestmark = pytest.mark.needs_torch("xpu")


@pytest.fixture(autouse=True)
def _no_cap(monkeypatch):
    monkeypatch.setattr(limits, "_caps", {})


class TestDevice:
    def test_it_is_the_optimal_device_and_says_what_it_is(self, xpu):
        device, info = get_optimal_device()
        assert device == torch.device("xpu", 0)
        assert "XPU (SYCL 20250201)" in info.reason
        assert not xpu.in_use

    @pytest.mark.parametrize(("rank", "device"), [("0", "xpu:0"), ("1", "xpu:1")])
    def test_the_rank_picks_the_card(self, monkeypatch, rank, device):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with stand_in(count=2):
            assert str(get_optimal_device().device) == device

    def test_a_rank_without_a_card_is_an_error(self, xpu, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with pytest.raises(DeviceUnavailableError, match=r"1 xpu device"):
            get_optimal_device()

    @pytest.mark.parametrize(
        ("facts", "code"),
        [({"driver": False}, ReasonCode.NO_DRIVER), ({"count": 0}, ReasonCode.NO_DEVICE)],
    )
    def test_why_it_cannot_be_used(self, facts, code, monkeypatch):
        monkeypatch.setenv("MPSKIT_DEVICE", "xpu")
        with stand_in(**facts), pytest.warns(DeviceFallbackWarning, match="XPU"):
            device, info = get_optimal_device()
        assert device == torch.device("cpu")
        rejected = next(one for one in info.rejected if one.device == "xpu")
        assert (rejected.code, rejected.fix) == (code, "clinfo -l")

    def test_this_build_has_none_and_says_what_to_install(self):
        rejected = next(one for one in get_optimal_device().info.rejected if one.device == "xpu")
        assert rejected.code is ReasonCode.NOT_BUILT
        assert "download.pytorch.org/whl/xpu" in rejected.fix

    def test_an_order_may_name_it(self, xpu):
        assert str(get_optimal_device(policy=("cpu", "xpu")).device) == "cpu"
        assert str(get_optimal_device(policy=("xpu", "cpu")).device) == "xpu:0"

    @pytest.mark.parametrize(
        ("version", "vendor", "device"),
        [
            ("2.13.0+xpu", "0x8086", "xpu:0"),
            ("2.13.0+cpu", "0x8086", "cpu"),
            ("2.13.0", "0x8086", "cpu"),
            ("2.13.0", "0x10de", "cuda:0"),
            ("2.13.0+cu128", "0x10de", "cuda:0"),
            ("2.13.0+xpu", "0x10de", "cpu"),
            ("2.13.0+rocm6.4", "0x1002", "cuda:0"),
        ],
    )
    def test_it_is_expected_before_torch_is_imported(self, monkeypatch, version, vendor, device):
        monkeypatch.setattr("mpskit.device.expect.torch_version", lambda: version)
        monkeypatch.setattr("mpskit.device.expect.card_count", lambda asked: int(asked == vendor))
        replace_readings(Readings(system="Linux", machine="x86_64"))
        try:
            assert expected_device() == device
        finally:
            replace_readings(None)
            detect_host(refresh=True)

    def test_linux_shows_cards_by_vendor(self, tmp_path, monkeypatch):
        for number, vendor in enumerate(("0x8086", "0x1002", "0x8086")):
            node = tmp_path / f"sys/class/drm/renderD{128 + number}/device"
            node.mkdir(parents=True)
            (node / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "sys/class/drm/renderD131/device/vendor").mkdir(parents=True)
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/nvidia0").touch()
        (tmp_path / "dev/nvidiactl").touch()
        monkeypatch.setattr(gpu, "Path", lambda path: tmp_path / path.lstrip("/"))
        assert [gpu.card_count(one) for one in ("0x8086", "0x1002", "0x10de")] == [2, 1, 1]


class TestMemory:
    def test_the_budget_of_a_card(self, xpu):
        found = memory_budget("xpu:0", reserve=GIB)
        assert (found.total_bytes, found.recommended_source) == (16 * GIB, "vram")
        assert found.usable_bytes == 15 * GIB
        assert any(ARC in note and "XPU (SYCL 20250201)" in note for note in found.notes)

    def test_it_is_left_alone_unless_live(self, xpu):
        assert memory_budget("xpu", live=False).total_bytes is None
        assert not xpu.in_use

    def test_an_integrated_gpu_shares_the_machine_s_memory(self):
        replace_readings(Readings(system="Linux", memory_total=32 * GIB, memory_available=4 * GIB))
        try:
            with stand_in(integrated=True):
                found = memory_budget("xpu", reserve=0)
        finally:
            replace_readings(None)
            detect_host(refresh=True)
        assert found.usable_bytes <= 4 * GIB < found.total_bytes
        assert any("integrated" in note for note in found.notes)

    def test_a_snapshot(self, xpu):
        xpu.hold(3 * GIB)
        xpu.hold(GIB)
        found = memory_snapshot()
        assert (found.device, found.allocated_bytes, found.reserved_bytes) == (
            "xpu", GIB, 3 * GIB
        )  # fmt: skip
        assert (found.peak_bytes, found.peak_source) == (3 * GIB, "native")
        assert device_in_use() == torch.device("xpu")

    def test_a_cap_is_set_told_and_taken_back(self, xpu):
        with limit_memory("50%", "xpu:0") as cap:
            assert (cap.limit_bytes, cap.kind, xpu.fraction) == (8 * GIB, "device", 0.5)
            assert memory_budget("xpu").limit_bytes == 8 * GIB
        assert xpu.fraction == 1.0

    def test_a_torch_without_the_cap_says_so(self, xpu, monkeypatch):
        names = ("set_per_process_memory_fraction", "get_per_process_memory_fraction")
        real = "fake_xpu._REAL"
        for name in names:
            monkeypatch.delattr(type(xpu), name)
        monkeypatch.setattr(real, object())
        with pytest.raises(DeviceUnavailableError, match="no cap"):
            limit_memory("50%", "xpu")

    def test_its_cache_is_emptied_only_in_use(self, xpu):
        assert empty_cache().devices == ()
        xpu.hold(3 * GIB)
        xpu.hold(GIB)
        report = empty_cache()
        assert (report.devices, report.freed_bytes, report.graph_cache) == (
            ("xpu",), 2 * GIB, False
        )  # fmt: skip
        assert xpu.cleared == 1

    def test_an_error_is_explained(self):
        text = (
            "XPU out of memory. Tried to allocate 4.66 GiB. GPU 0 has a total capacity of 5.65 GiB"
            " of which 1.65 GiB is free. Of the allocated memory 3.50 GiB is allocated by PyTorch,"
            " and 0.25 GiB is reserved by PyTorch but unallocated."
        )
        told = explain_oom(text)
        assert "XPU is out of memory" in told.summary
        assert told.figures.backend == "xpu"
        assert not any("from the same memory" in holder for holder in told.holders)
        assert mpskit.is_oom(RuntimeError(text))


class TestTraining:
    @pytest.mark.parametrize(
        ("bfloat16", "dtype", "scaler"), [(True, "bfloat16", False), (False, "float16", True)]
    )
    def test_the_precision_is_what_the_card_computes_in(self, bfloat16, dtype, scaler):
        with stand_in(bfloat16=bfloat16):
            found = precision_for("xpu")
            assert (found.autocast_dtype, found.grad_scaler) == (dtype, scaler)
            assert precision.grad_scaler("xpu").is_enabled() is scaler
            context = precision.autocast("xpu")
        assert (context.device, str(context.fast_dtype)) == ("xpu", f"torch.{dtype}")

    def test_a_card_that_cannot_be_asked_has_bfloat16(self):
        assert precision.choose("xpu", "2.13.0").autocast_dtype == "bfloat16"
        assert precision.choose("cuda", "2.13.0").autocast_dtype == "float16"

    def test_the_loader_pins(self, xpu):
        assert dataloader_kwargs("xpu", num_workers=0)["pin_memory"] is True
        facts = LoaderFacts("xpu", usable_cpus=8, counted_cpus=8)
        assert workers_for(facts)[0] == 4

    def test_copies_are_asynchronous_from_pinned_memory_only(self):
        asked = {"source": "cpu", "target": "xpu", "asked": None}
        assert transfer.copy_is_asynchronous(**asked, pinned=True)
        assert not transfer.copy_is_asynchronous(**asked, pinned=False)

    def test_a_batch_keeps_its_64_bit_floats(self, xpu):
        moved = mpskit.to_device({"x": torch.ones(2, dtype=torch.float64)}, "xpu")
        assert moved["x"].dtype is torch.float64


class TestEstimate:
    def test_the_allocator_is_cuda_s_under_its_own_name(self):
        sizes = [1, 512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 33 * MIB + 1]
        models = [allocator_for(name, torch_version="2.13.0") for name in ("cuda", "xpu")]
        for size in sizes:
            for model in models:
                model.allocate(size)
        cuda, xpu = models
        assert (xpu.live_bytes, xpu.driver_bytes) == (cuda.live_bytes, cuda.driver_bytes)
        small = allocator_for("xpu", torch_version="2.13.0", recommended_bytes=MIB)
        with pytest.raises(AllocatorLimitError, match="XPU out of memory"):
            small.allocate(MIB)

    def test_a_training_step(self):
        model = torch.nn.Linear(512, 512)
        batch = torch.ones(64, 512)
        figures = [
            estimate_training_memory(model, batch, optimizer=torch.optim.AdamW, device=device)
            for device in ("cuda", "xpu")
        ]
        assert figures[1].device == "xpu"
        assert figures[0].peak_bytes == figures[1].peak_bytes


class TestFixtures:
    def test_usable_devices_and_requirements(self, xpu):
        assert plugin._usable_devices() == ["cpu", "xpu"]
        assert plugin._why_not("xpu") is None
        assert plugin._why_not("accelerator") is None

    def test_what_is_missing_is_told(self):
        with stand_in(driver=False):
            assert "Failed to initialize" in plugin._why_not("xpu")


def test_the_doctor():
    command = [sys.executable, str(Path(__file__).parent / "fake_xpu.py"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), done.stderr
    status = next(one for one in report["backends"] if one["device"] == "xpu")
    assert (status["usable"], status["label"]) == (True, "XPU (SYCL 20250201)")
    assert report["device_test"] == {"device": "xpu:0", "passed": True, "error": None}
    assert report["memory"]["total_bytes"] == 16 * GIB


def test_nothing_of_the_stand_in_stays():
    before = torch.xpu
    with contextlib.suppress(KeyError), stand_in():
        raise KeyError
    assert torch.xpu is before
    assert not torch._C._has_xpu
    assert str(get_optimal_device().device) == "cpu"
