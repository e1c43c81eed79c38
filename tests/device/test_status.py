"""Every reason for an unusable MPS, as a table of machines and torch versions."""

import pytest

from mpskit.backends.facts import Found, TorchFacts
from mpskit.backends.kinds import KINDS, ROCM, Kind
from mpskit.device import ReasonCode
from mpskit.device.status import ProbeAnswer, backend_statuses, mps_status
from mpskit.host import Host, Readings, find_machine


def _torch(version, *found, **metal):
    mps = [Found(KINDS["mps"], **metal)] if metal else []
    return TorchFacts(version, {one.kind.name: one for one in (*found, *mps)})


BUILT = {"built": True, "count": 1}


def _host(name, macos="15.6", **changes):
    readings = find_machine(name).model_copy(update={"macos": macos}).readings()
    return Host.from_readings(readings.model_copy(update=changes))


LINUX = Host.from_readings(Readings(system="Linux", machine="x86_64"))

TABLE = [
    (_host("m1-8gb"), _torch("2.13.0"), ReasonCode.NOT_BUILT),
    (_host("m1-8gb"), _torch("2.13.0", built=True), ReasonCode.NO_METAL_DEVICE),
    (
        _host("m1-8gb", macos="13.6"),
        _torch("2.9.0", **BUILT),
        ReasonCode.MACOS_TOO_OLD,
    ),
    (
        _host("m1-8gb", macos="14.7"),
        _torch("2.15.0", **BUILT),
        ReasonCode.MACOS_TOO_OLD,
    ),
    (_host("rosetta-m2-16gb"), _torch("2.2.2", **BUILT), ReasonCode.ROSETTA),
    (_host("intel-mac-32gb"), _torch("2.2.2", built=True), ReasonCode.INTEL_MAC),
    (
        _host("intel-mac-amd-32gb"),
        _torch("2.13.0", built=True),
        ReasonCode.DISCRETE_GPU_UNSUPPORTED,
    ),
    (
        _host("m1-8gb"),
        _torch("2.13.0", **BUILT, bad_fork=True),
        ReasonCode.BAD_FORK,
    ),
    (LINUX, _torch("2.13.0"), ReasonCode.NOT_A_MAC),
]


@pytest.mark.parametrize(("host", "facts", "code"), TABLE, ids=[str(row[2]) for row in TABLE])
def test_why_mps_cannot_be_used(host, facts, code):
    status = mps_status(host, facts)
    assert (status.usable, status.code) == (False, code)
    assert status.reason
    assert status.fix


@pytest.mark.parametrize(
    ("name", "torch"),
    [("m1-8gb", "2.13.0"), ("m6-32gb", "2.15.0"), ("a18-pro-8gb", "2.9.0"),
     ("intel-mac-amd-32gb", "2.2.2")],
)  # fmt: skip
def test_where_mps_can_be_used(name, torch):
    status = mps_status(_host(name), _torch(torch, **BUILT))
    assert (status.usable, status.code, status.count) == (True, None, 1)


def test_a_macos_that_nobody_knows_is_not_too_old():
    host = _host("m1-8gb", product_version=None, mac_ver="10.16", platform_string=None, sysctl={})
    assert mps_status(host, _torch("2.15.0", **BUILT)).usable


def test_the_user_s_no_comes_first():
    status = mps_status(LINUX, _torch("2.13.0"), disabled=True)
    assert status.code is ReasonCode.DISABLED_BY_USER
    assert status.fix == "unset MPSKIT_DISABLE_MPS"


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (ProbeAnswer(), None, ""),
        (ProbeAnswer("numbers differ"), ReasonCode.VM_UNUSABLE, "work on it fails: numbers differ"),
        (ProbeAnswer("no answer", 20), ReasonCode.VM_NOT_KNOWN, "is unknown: no answer"),
    ],
)
def test_on_a_virtual_machine_the_probe_decides(answer, code, text):
    host, torch = _host("github-macos-15-vm"), _torch("2.13.0", **BUILT)
    status = mps_status(host, torch, probe=lambda: answer)
    assert (status.usable, status.code) == (code is None, code)
    assert text in status.reason


def test_no_probe_runs_where_none_is_needed():
    def probe():
        raise AssertionError("a probe costs seconds")

    assert mps_status(_host("m1-8gb"), _torch("2.13.0", **BUILT), probe=probe).usable
    vm = _host("github-macos-15-vm")
    assert not mps_status(vm, _torch("2.13.0", built=True), probe=probe).usable


CUDA, XPU = KINDS["cuda"], KINDS["xpu"]
NO_DRIVER = "Failed to initialize XPU devices. The driver may not be installed."


@pytest.mark.parametrize(
    ("found", "code", "text"),
    [
        (Found(CUDA), ReasonCode.NOT_BUILT, "built without CUDA or ROCm"),
        (Found(CUDA, built=True), ReasonCode.NO_DEVICE, "CUDA_VISIBLE_DEVICES"),
        (Found(ROCM, built=True), ReasonCode.NO_DEVICE, "HIP_VISIBLE_DEVICES"),
        (Found(XPU), ReasonCode.NOT_BUILT, "built without XPU"),
        (Found(XPU, built=True), ReasonCode.NO_DEVICE, "ZE_AFFINITY_MASK"),
        (Found(XPU, built=True, trouble=NO_DRIVER), ReasonCode.NO_DRIVER, "Failed to initialize"),
        (Found(CUDA, built=True, count=2), None, ""),
        (Found(XPU, built=True, count=1), None, ""),
        (Found(XPU, built=True, count=1, trouble="a remark"), None, ""),
        (Found(Kind("hpu", "HPU"), built=True, count=8), None, ""),
    ],
)
def test_cards(found, code, text):
    statuses = backend_statuses(LINUX, _torch("2.13.0", found))
    status = next(one for one in statuses if one.device == found.kind.name)
    assert (status.usable, status.code, status.count) == (code is None, code, found.count)
    assert (status.built, status.available) == (found.built, found.count > 0)
    assert text in status.reason
    assert code is None or status.fix


def test_the_order_is_the_table_s_and_a_plugged_in_one_comes_before_the_cpu():
    hpu = Found(Kind("hpu", "HPU"), built=True, count=1)
    names = [one.device for one in backend_statuses(LINUX, _torch("2.13.0", hpu))]
    assert names == ["cuda", "mps", "xpu", "hpu", "cpu"]


@pytest.mark.parametrize(
    ("found", "label"),
    [
        (Found(CUDA, built=True, count=1, version="12.8"), "CUDA 12.8"),
        (Found(ROCM, built=True, count=1, version="6.2.41133"), "ROCm (HIP 6.2.41133)"),
        (Found(XPU, built=True, count=1, version="20250201"), "XPU (SYCL 20250201)"),
        (Found(XPU, built=True, count=1), "XPU"),
    ],
)
def test_what_torch_was_built_for_is_told(found, label):
    statuses = backend_statuses(LINUX, _torch("2.13.0", found))
    status = next(one for one in statuses if one.device == found.kind.name)
    assert (status.device, status.label) == (found.kind.name, label)


def test_every_backend_is_judged_and_mps_is_disabled_only_when_asked():
    facts = _torch("2.13.0", **BUILT)
    statuses = {one.device: one for one in backend_statuses(_host("m1-8gb"), facts)}
    assert statuses["mps"].usable
    off = {one.device: one for one in backend_statuses(_host("m1-8gb"), facts, disable_mps=True)}
    assert (off["mps"].usable, off["mps"].code) == (False, ReasonCode.DISABLED_BY_USER)
    assert {name for name in off if off[name] != statuses[name]} == {"mps"}
