"""What torch is asked of its backends, and that a question which fails counts as no."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from fake_xpu import NO_DRIVER, stand_in

from mpskit import CacheKeeper, empty_cache, memory_snapshot
from mpskit.backends.facts import (
    Found,
    build_of,
    current_accelerator,
    read_metal,
    read_torch,
    torch_trouble,
)
from mpskit.backends.kinds import KINDS, ROCM
from mpskit.backends.memory import backend, device_in_use, present_kinds


def raising():
    raise RuntimeError("Please ensure that an accelerator is available")


def test_this_build():
    facts = read_torch()
    assert facts.version == str(torch.__version__)
    assert facts.of("cuda").built == torch.backends.cuda.is_built()
    assert facts.of("xpu").count == (torch.xpu.device_count() if hasattr(torch, "xpu") else 0)
    assert facts.of("mps").built == torch.backends.mps.is_built()
    assert (facts.of("cpu").built, facts.of("cpu").count) == (True, 1)


@pytest.mark.needs_torch("accelerator")
class TestTorch26WithoutAnAccelerator:
    """There ``current_accelerator()`` raises, where later ones return None."""

    @pytest.fixture(autouse=True)
    def _raises(self, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", raising)

    def test_there_is_none(self):
        assert current_accelerator() is None
        assert present_kinds() == ()
        assert backend("hpu").is_initialized() is False

    def test_nothing_that_asks_for_it_raises(self):
        assert empty_cache().devices == ()
        assert memory_snapshot().device == str(device_in_use()) == "cpu"
        assert CacheKeeper(every=1).step() is None


@pytest.mark.needs_torch("accelerator")
def test_torch_before_26_has_no_accelerator_to_ask(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", raising)
    assert current_accelerator() is None
    assert present_kinds() == ("cuda", "mps", "xpu")


@pytest.mark.needs_torch("xpu")
def test_a_missing_driver_is_kept_and_not_printed():
    with stand_in(driver=False), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first, found = read_torch().of("xpu"), read_torch().of("xpu")
    assert first == found
    assert (found.built, found.count, found.trouble) == (True, 0, NO_DRIVER)
    assert said == []


@pytest.mark.needs_torch("xpu")
def test_a_warning_of_something_else_is_no_driver_s(monkeypatch):
    def count():
        warnings.warn("XPU device count is zero!", stacklevel=1)
        return 0

    monkeypatch.setattr(torch.xpu, "device_count", count)
    assert read_torch().of("xpu").trouble is None


def test_a_module_that_refuses_has_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", raising)
    assert read_torch().of("cuda").count == 0


def test_a_build_for_amd_is_rocm_s(monkeypatch):
    assert build_of(KINDS["cuda"])[0] is KINDS["cuda"]
    monkeypatch.setattr(torch.version, "hip", "6.2.41133")
    assert build_of(KINDS["cuda"]) == (ROCM, "6.2.41133")
    assert backend("cuda:0").label == "ROCm (HIP 6.2.41133)"
    assert read_torch().of("cuda").kind is ROCM


@pytest.mark.needs_torch("accelerator")
def test_a_plugged_in_accelerator_is_counted(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("hpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    found = read_torch().of("hpu")
    assert (found.kind.name, found.built, found.count) == ("hpu", True, 8)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    assert "hpu" not in read_torch().found


def test_what_was_not_found_is_not_there():
    found = Found(KINDS["cuda"])
    assert (found.built, found.count, found.bad_fork) == (False, 0, False)


@pytest.mark.parametrize(
    ("lacking", "trouble"),
    [
        ((), None),
        (("optim",), "torch is installed only in part: it has no torch.optim"),
        (("nn", "optim"), "torch is installed only in part: it has no torch.nn"),
    ],
)
def test_a_torch_that_is_installed_in_part(monkeypatch, lacking, trouble):
    names = ("__version__", "_C", "Tensor", "backends", "device", "nn", "optim")
    whole = {name: None for name in names if name not in lacking}
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(**whole))
    assert torch_trouble() == trouble


def test_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert torch_trouble().startswith("torch cannot be imported: ModuleNotFoundError: ")


M1 = {"metal_device": "Apple M1", "metal_cores": 8}


@pytest.mark.parametrize(
    ("version", "available", "told"),
    [("2.9.0", True, M1), ("2.8.0", True, {}), ("2.9.0", False, {}), (None, True, {})],
)
def test_an_imported_torch_tells_the_metal_device(monkeypatch, version, available, told):
    mps = SimpleNamespace(
        is_available=lambda: available, get_name=lambda: "Apple M1", get_core_count=lambda: 8
    )
    torch_ = SimpleNamespace(__version__=version, backends=SimpleNamespace(mps=mps))
    monkeypatch.setitem(sys.modules, "torch", None if version is None else torch_)
    assert read_metal() == told
