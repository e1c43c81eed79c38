"""Control groups of both versions, and malformed ones."""

import pytest

from mpskit.host import Host, Readings, linux

GIB = 1024**3

QUOTAS = [
    (None, None),
    ({}, None),
    ({"cpu.max": "max 100000"}, None),
    ({"cpu.max": "200000 100000"}, 2.0),
    ({"cpu.max": "150000"}, 1.5),
    ({"user/cpu.max": "400000 100000", "cpu.max": "50000 100000"}, 0.5),
    ({"/sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "50000"}, 5.0),
    ({"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2.0),
    ({"cpu.cfs_quota_us": "200000"}, 2.0),
    ({"cpu.max": ""}, None),
    ({"cpu.max": "200000 0"}, None),
    ({"cpu.max": "0 100000"}, None),
    ({"cpu.max": "two hundred"}, None),
    ({"cpu.max": "\u0662 \u0661"}, None),
    ({"cpu.cfs_quota_us": "many", "cpu.cfs_period_us": "100000"}, None),
]
LIMITS = [
    ({"memory.max": "max"}, None, None),
    ({"memory.max": str(4 * GIB)}, None, 4 * GIB),
    ({"memory.max": str(4 * GIB)}, 2 * GIB, None),
    ({"a/b/memory.max": str(4 * GIB), "a/memory.max": str(3 * GIB)}, 8 * GIB, 3 * GIB),
    ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
    ({"memory/memory.limit_in_bytes": str(GIB)}, 8 * GIB, GIB),
    ({"memory.max": "4G"}, None, None),
    ({"memory.max": "-1"}, None, None),
    ({"memory.max": "0"}, None, None),
    (None, 8 * GIB, None),
]


@pytest.mark.parametrize(("files", "quota"), QUOTAS)
def test_cpu_quota(files, quota):
    assert linux.cpu_quota(files) == quota


@pytest.mark.parametrize(("files", "total", "limit"), LIMITS)
def test_memory_limit(files, total, limit):
    assert linux.memory_limit(files, total) == limit


@pytest.mark.parametrize(
    ("counts", "quota", "usable"),
    [
        ((8, 4), None, 4),
        ((8, None), 1.5, 2),
        ((8, 8), 0.1, 1),
        ((None, None), None, 1),
        ((0, -3), None, 1),
        ((2, 2), 64.0, 2),
        ((2, 2), 1e30, 2),
        ((None,), 2.0**20 - 1, 2**20 - 1),
        ((None,), 2.0**20, 1),
    ],
)
def test_usable_cpus(counts, quota, usable):
    assert linux.usable_cpus(counts, quota) == usable


def test_a_container_in_the_host():
    files = {"cpu.max": "150000 100000", "memory.max": str(6 * GIB)}
    host = Host.from_readings(
        Readings(
            system="Linux",
            platform_string="Linux-6.1.0-21-amd64-x86_64-with-glibc2.36",
            cgroup=files,
            memory_total=64 * GIB,
            logical_cpus=32,
            affinity=16,
        )
    )
    assert (host.usable_cpus, host.logical_cpus) == (2, 32)
    assert host.memory_limit_bytes == 6 * GIB
    assert host.os_version == "6.1.0"
    assert "a container limit of 6.00 GiB" in str(host)
