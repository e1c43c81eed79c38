"""Fifty fingerprints that people published (tests/data/mac_hosts.jsonl, each with its source)."""

import json
from pathlib import Path

import pytest

from mpskit.host import Host, HostKind, Readings

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "mac_hosts.jsonl").read_text().splitlines()
]
KINDS = {
    "native_arm64": HostKind.APPLE_SILICON,
    "dtk_or_prerelease": HostKind.APPLE_SILICON,
    "rosetta": HostKind.APPLE_SILICON_ROSETTA,
    "intel": HostKind.INTEL_MAC,
    "vm": HostKind.MAC_VM,
    "docker_amd64_linux": HostKind.LINUX,
    "x86_64_python_host_unknown": HostKind.INTEL_MAC,
}
# Their kind stands in the thread's prose and not in the readings: an Intel Mac says the same.
UNTELLABLE = {
    "python/cpython#96993 (comment 2023-12-08)",
    "Lightning-AI/pytorch-lightning#16124",
    "Netflix/metaflow#1077",
    "xlang-ai/OSWorld#27",
}
SYSCTLS = {
    "sysctl_machdep_cpu_brand_string": "machdep.cpu.brand_string",
    "machdep_cpu_features": "machdep.cpu.features",
    "hw_model": "hw.model",
    "hw_memsize": "hw.memsize",
    "hw_ncpu": "hw.ncpu",
    "hw_physicalcpu": "hw.physicalcpu",
    "hw_logicalcpu": "hw.logicalcpu",
    "hw_cputype": "hw.cputype",
    "iogpu_wired_limit_mb": "iogpu.wired_limit_mb",
}
SYSTEMS = {"docker_amd64_linux": "Linux"}


def sysctls(row: dict) -> dict[str, str]:
    found = {name: str(row[key]) for key, name in SYSCTLS.items() if key in row}
    brand = row.get("cpu") or row.get("collect_env_cpu")
    return ({"machdep.cpu.brand_string": brand} if brand else {}) | found


def readings(row: dict) -> Readings:
    return Readings(
        system=SYSTEMS.get(row["host_kind"], "Darwin"),
        machine=row.get("platform_machine") or row.get("uname_m"),
        processor=row.get("platform_processor"),
        platform_string=row.get("python_platform") or row.get("uname"),
        product_version=row.get("os"),
        cpu_brand=row.get("cpuid_brand"),
        metal_device=row.get("metal_name") or row.get("metal_class"),
        memory_total=row.get("hw_memsize") or row.get("ram_gib", 0) * 1024**3 or None,
        logical_cpus=row.get("logical_cpus") or row.get("cpu_count"),
        sysctl=sysctls(row),
    )


def name(row: dict) -> str:
    return f"{ROWS.index(row)}-{row['host_kind']}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_every_fingerprint_is_told_right(row):
    host = Host.from_readings(readings(row))
    if row["source_ref"] in UNTELLABLE:
        assert "undetermined" in host.signs[-1]
    else:
        assert host.kind is KINDS[row["host_kind"]], host.signs


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in ROWS
        if row["host_kind"] not in SYSTEMS and row["source_ref"] not in UNTELLABLE
    ],
    ids=name,
)
def test_the_system_need_not_be_read(row):
    """Everything but ``system`` says the same."""
    said = readings(row)
    with_system = Host.from_readings(said).kind
    assert Host.from_readings(said.model_copy(update={"system": None})).kind is with_system


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if "10.16" in row.get("python_platform", "")],
    ids=name,
)
def test_10_16_is_never_the_version(row):
    host = Host.from_readings(readings(row))
    assert host.os_version == ("15.3" if "15.3" in row.get("os", "") else None)


def test_the_versions_are_the_real_ones():
    versions = {Host.from_readings(readings(row)).os_version for row in ROWS if "os" in row}
    assert {"15.3", "14.5", "26.5.1", "13.7.8", "12.1", "26.3.1"} <= versions
    assert "10.16" not in versions
