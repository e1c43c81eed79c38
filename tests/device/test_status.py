"""Every reason for an unusable MPS, as a table of machines and torch versions."""

import pytest

from mpskit.backends.facts import TorchFacts
from mpskit.device import ReasonCode, cuda_status, mps_status, other_status
from mpskit.host import Host, Readings, find_machine

BUILT = {"mps_built": True, "mps_available": True}


def _host(name, macos="15.6", **changes):
    readings = find_machine(name).model_copy(update={"macos": macos}).readings()
    return Host.from_readings(readings.model_copy(update=changes))


LINUX = Host.from_readings(Readings(system="Linux", machine="x86_64"))

TABLE = [
    (_host("m1-8gb"), TorchFacts("2.13.0"), ReasonCode.NOT_BUILT),
    (_host("m1-8gb"), TorchFacts("2.13.0", mps_built=True), ReasonCode.NO_METAL_DEVICE),
    (
        _host("m1-8gb", macos="13.6"),
        TorchFacts("2.9.0", **BUILT),
        ReasonCode.MACOS_TOO_OLD,
    ),
    (
        _host("m1-8gb", macos="14.7"),
        TorchFacts("2.15.0", **BUILT),
        ReasonCode.MACOS_TOO_OLD,
    ),
    (_host("rosetta-m2-16gb"), TorchFacts("2.2.2", **BUILT), ReasonCode.ROSETTA),
    (_host("intel-mac-32gb"), TorchFacts("2.2.2", mps_built=True), ReasonCode.INTEL_MAC),
    (
        _host("intel-mac-amd-32gb"),
        TorchFacts("2.13.0", mps_built=True),
        ReasonCode.DISCRETE_GPU_UNSUPPORTED,
    ),
    (
        _host("m1-8gb"),
        TorchFacts("2.13.0", **BUILT, mps_bad_fork=True),
        ReasonCode.BAD_FORK,
    ),
    (LINUX, TorchFacts("2.13.0"), ReasonCode.NOT_A_MAC),
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
    status = mps_status(_host(name), TorchFacts(torch, **BUILT))
    assert (status.usable, status.code, status.count) == (True, None, 1)


def test_a_macos_that_nobody_knows_is_not_too_old():
    host = _host("m1-8gb", product_version=None, mac_ver="10.16", platform_string=None, sysctl={})
    assert mps_status(host, TorchFacts("2.15.0", **BUILT)).usable


def test_the_user_s_no_comes_first():
    status = mps_status(LINUX, TorchFacts("2.13.0"), disabled=True)
    assert status.code is ReasonCode.DISABLED_BY_USER
    assert status.fix == "unset MPSKIT_DISABLE_MPS"


@pytest.mark.parametrize("failure", ["no answer within 20 s", None])
def test_on_a_virtual_machine_the_probe_decides(failure):
    status = mps_status(
        _host("github-macos-15-vm"), TorchFacts("2.13.0", **BUILT), probe=lambda: failure
    )
    assert status.usable is (failure is None)
    assert status.code is (None if failure is None else ReasonCode.VM_UNUSABLE)
    assert (failure or "") in status.reason


def test_no_probe_runs_where_none_is_needed():
    def probe():
        raise AssertionError("a probe costs seconds")

    assert mps_status(_host("m1-8gb"), TorchFacts("2.13.0", **BUILT), probe=probe).usable
    vm = _host("github-macos-15-vm")
    assert not mps_status(vm, TorchFacts("2.13.0", mps_built=True), probe=probe).usable


@pytest.mark.parametrize(
    ("facts", "usable", "code"),
    [
        (TorchFacts("2.13.0"), False, ReasonCode.NOT_BUILT),
        (TorchFacts("2.13.0", cuda_built="12.8"), False, ReasonCode.NO_DEVICE),
        (TorchFacts("2.13.0", cuda_built="12.8", cuda_count=2), True, None),
    ],
)
def test_cuda(facts, usable, code):
    status = cuda_status(facts)
    assert (status.usable, status.code, status.count) == (usable, code, facts.cuda_count)


def test_another_accelerator_is_known_by_torch_s_own_name():
    assert other_status(TorchFacts("2.13.0")) is None
    status = other_status(TorchFacts("2.13.0", other=("xpu", 2)))
    assert (status.device, status.count, status.usable) == ("xpu", 2, True)
