"""Torch's backends: what they are asked, and never asked, by torch version."""

from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from mpskit import empty_cache, memory_budget
from mpskit.backends import memory
from mpskit.backends.memory import Backend, as_device, backend, default_device, device_in_use
from mpskit.errors import ArgumentError, ArgumentTypeError

VERSIONS = ("2.2.2", "2.4.1", "2.8.0", "2.9.1", "2.12.1", "2.13.0", "2.15.0")
FIGURES = (
    Backend.allocated_bytes,
    Backend.reserved_bytes,
    Backend.peak_bytes,
    Backend.total_bytes,
    Backend.free_bytes,
    Backend.recommended_bytes,
    Backend.max_buffer_bytes,
    Backend.memory_fraction,
    Backend.name,
)


def told(device):
    """Every figure that the device's backend tells."""
    asked = backend(device)
    return [getattr(asked, figure.__name__)() for figure in FIGURES]


class Recorder:
    """A torch module of figures that remembers what it was asked."""

    def __init__(self, **figures):
        self.asked = []
        self._figures = figures

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._figures:
            raise AttributeError(name)

        def answer(*arguments):
            self.asked.append((name, *arguments))
            value = self._figures[name]
            if isinstance(value, Exception):
                raise value
            return value

        return answer


def since(version, first):
    return Version(version) >= Version(first)


def trap(*_):
    raise RuntimeError("Allocator for mps is not a DeviceAllocator.")


@pytest.fixture
def mac(monkeypatch):
    """``mac(version, initialized)``: torch of that version on a Mac, as far as the facade asks."""

    def make(version, initialized):
        mps = Recorder(
            current_allocated_memory=100,
            driver_allocated_memory=300,
            recommended_max_memory=5726633984,
            empty_cache=None,
            synchronize=None,
            set_per_process_memory_fraction=None,
        )
        working = since(version, "2.13")
        accelerator = Recorder(
            max_memory_allocated=200 if working else RuntimeError("no DeviceAllocator"),
            reset_peak_memory_stats=None if working else RuntimeError("no DeviceAllocator"),
            current_accelerator=torch.device("mps"),
        )
        monkeypatch.setattr(memory, "torch_version", lambda: version)
        monkeypatch.setattr(torch, "mps", mps)
        monkeypatch.setattr(torch, "accelerator", accelerator, raising=False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M1", raising=False)
        asked = (lambda: initialized) if working else trap
        monkeypatch.setattr(torch._C, "_accelerator_isAllocatorInitialized", asked, raising=False)
        monkeypatch.setattr(torch._C, "_mps_maxBufferLength", lambda: 4294967296, raising=False)
        return mps

    return make


@pytest.mark.parametrize("device", ["cpu", "meta", "mps", "cuda", "xpu", "hpu"])
def test_a_backend_that_is_absent_lacks_every_figure(device, monkeypatch):
    for module in (torch.cuda, getattr(torch, "xpu", None), torch.backends.mps):
        if module is not None:
            monkeypatch.setattr(module, "is_available", lambda: False)
    if hasattr(torch, "accelerator"):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert told(device) == [None] * len(FIGURES)
    assert backend(device).is_initialized() is (device in ("cpu", "meta"))
    assert not backend(device).set_memory_fraction(0.5)
    assert not backend(device).reset_peak()
    backend(device).synchronize()
    backend(device).empty_cache()


@pytest.mark.parametrize("version", VERSIONS)
def test_whether_mps_is_in_use_can_be_asked_from_213_on(mac, version):
    mac(version, True)
    assert backend("mps").is_initialized() is (True if since(version, "2.13") else None)


@pytest.mark.parametrize("version", VERSIONS)
def test_mps_figures_by_torch_version(mac, version):
    mac(version, True)
    new, recommends = since(version, "2.13"), since(version, "2.5")
    assert backend("mps").allocated_bytes() == 100
    assert backend(torch.device("mps", 0)).reserved_bytes() == 300
    assert backend("mps").peak_bytes() == (200 if new else None)
    assert backend("mps").reset_peak() is new
    assert backend("mps").recommended_bytes() == (5726633984 if recommends else None)
    assert backend("mps").max_buffer_bytes() == (4294967296 if new else None)
    assert backend("mps").name() == ("Apple M1" if since(version, "2.9") else None)
    assert backend("mps").total_bytes() is None


def test_an_unused_mps_is_not_touched(mac):
    mps = mac("2.13.0", False)
    assert (backend("mps").allocated_bytes(), backend("mps").reserved_bytes()) == (0, 0)
    assert backend("mps").peak_bytes() == 0
    backend("mps").empty_cache()
    backend("mps").synchronize()
    assert mps.asked == []


def test_a_cap_is_given_to_mps_as_a_float(mac):
    mps = mac("2.13.0", True)
    assert backend("mps").set_memory_fraction(1)
    ((name, fraction),) = mps.asked
    assert name == "set_per_process_memory_fraction"
    assert (type(fraction), fraction) == (float, 1.0)


def cuda(initialized, **more):
    return Recorder(
        is_initialized=initialized,
        is_available=True,
        memory_allocated=10,
        memory_reserved=30,
        max_memory_allocated=20,
        reset_peak_memory_stats=None,
        get_device_properties=SimpleNamespace(total_memory=1000),
        mem_get_info=(400, 1000),
        get_device_name="NVIDIA T4",
        empty_cache=None,
        synchronize=None,
        set_per_process_memory_fraction=None,
        get_per_process_memory_fraction=0.5,
        **more,
    )


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_module_that_is_in_use_tells_everything(monkeypatch, kind):
    monkeypatch.setattr(torch, kind, cuda(True), raising=False)
    assert told(f"{kind}:0") == [10, 30, 20, 1000, 400, None, None, 0.5, "NVIDIA T4"]
    assert backend(kind).reset_peak()
    assert backend(kind).set_memory_fraction(0.5)


@pytest.mark.parametrize(
    ("capability", "computes"), [((7, 5), False), ((8, 0), True), ((9, 0), True), (None, None)]
)
def test_a_card_computes_in_bfloat16_from_ampere_on(monkeypatch, capability, computes):
    monkeypatch.setattr(torch, "cuda", cuda(True, get_device_capability=capability))
    assert backend("cuda").computes_bfloat16() is computes


def test_an_unused_cuda_is_not_initialised(monkeypatch):
    fake = cuda(False)
    monkeypatch.setattr(torch, "cuda", fake)
    assert (backend("cuda").allocated_bytes(), backend("cuda").reserved_bytes()) == (0, 0)
    assert backend("cuda").memory_fraction() is None
    assert not backend("cuda").reset_peak()
    backend("cuda").synchronize()
    assert {name for name, *_ in fake.asked} == {"is_initialized", "is_available"}


@pytest.fixture
def hpu(monkeypatch):
    """An accelerator without a class of its own, known to ``torch.accelerator`` only."""

    def make(**figures):
        known = {"current_accelerator": torch.device("hpu"), **figures}
        accelerator = Recorder(**known)
        monkeypatch.setattr(torch, "accelerator", accelerator, raising=False)
        monkeypatch.setattr(memory, "torch_version", lambda: "2.13.0")
        asked = lambda: True
        monkeypatch.setattr(torch._C, "_accelerator_isAllocatorInitialized", asked, raising=False)
        return accelerator

    return make


@pytest.mark.needs_torch("accelerator")
def test_another_accelerator_is_asked_through_torch_accelerator(hpu):
    hpu(
        memory_allocated=1,
        memory_reserved=3,
        max_memory_allocated=2,
        get_memory_info=(40, 100),
        reset_peak_memory_stats=None,
        empty_cache=None,
        synchronize=None,
    )
    assert told("hpu") == [1, 3, 2, 100, 40, None, None, None, None]
    assert backend("hpu").is_initialized() is True
    assert backend("hpu").reset_peak()
    backend("hpu").empty_cache()
    backend("hpu").synchronize()


def test_an_accelerator_whose_allocator_tells_nothing_lacks_figures(hpu):
    hpu(memory_allocated=RuntimeError("INTERNAL ASSERT"))
    assert backend("hpu").allocated_bytes() is None


@pytest.mark.needs_torch("accelerator")
def test_the_accelerator_of_another_kind_is_not_asked(hpu):
    accelerator = hpu(memory_allocated=1)
    assert backend("npu").allocated_bytes() is None
    assert backend("npu").is_initialized() is False
    assert accelerator.asked == [("current_accelerator",)] * 2


def test_devices_are_understood():
    assert as_device("cuda:1") == torch.device("cuda", 1)
    assert as_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "error"),
    [("banana", ArgumentError), ("", ArgumentError), (3, ArgumentTypeError)],
)
def test_what_is_no_device_is_refused(device, error):
    with pytest.raises(error) as caught:
        as_device(device)
    assert caught.value.given == device


def test_the_device_in_use_is_the_cpu_where_nothing_else_is(monkeypatch):
    for module in (torch.cuda, getattr(torch, "xpu", None)):
        if module is not None:
            monkeypatch.setattr(module, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_in_use() == torch.device("cpu")


@pytest.mark.needs_torch("accelerator")
@pytest.mark.parametrize(
    ("version", "initialized", "kind"),
    [("2.13.0", True, "mps"), ("2.13.0", False, "cpu"), ("2.12.1", False, "mps")],
)
def test_mps_counts_as_in_use_where_it_cannot_be_asked(mac, version, initialized, kind):
    mac(version, initialized)
    assert device_in_use().type == kind


def test_a_default_device_that_cannot_be_asked_is_none(monkeypatch):
    """As in torch 2.6 after ``set_default_device(None)``, and in 2.2, which has no function."""

    def fails():
        raise AttributeError("'NoneType' object has no attribute 'device'")

    monkeypatch.setattr(torch, "get_default_device", fails, raising=False)
    assert default_device() is None
    assert device_in_use() == torch.device("cpu")
    assert empty_cache().devices == ()


@pytest.mark.needs_torch("default_device")
def test_torchs_default_device_is_in_use():
    torch.set_default_device("meta")
    try:
        assert device_in_use() == torch.device("meta")
    finally:
        torch.set_default_device(None)


def test_a_budget_tells_rocm_from_cuda(monkeypatch):
    monkeypatch.setattr(torch, "cuda", cuda(True))
    monkeypatch.setattr(torch.version, "hip", "6.2.41133")
    notes = " ".join(memory_budget("cuda:0").notes)
    assert "cuda:0 is NVIDIA T4, used through ROCm (HIP 6.2.41133)" in notes
