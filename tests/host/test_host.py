"""Host.from_readings: kinds, versions, and that no reading makes it raise."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentTypeError
from mpskit.host import Host, HostKind, Readings, detect_host
from mpskit.system.machine import replace_readings

M2 = {"machdep.cpu.brand_string": "Apple M2 Pro"}
INTEL = {"machdep.cpu.brand_string": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"}
X86 = {"system": "Darwin", "machine": "x86_64", "processor": "i386"}
ARM = {"system": "Darwin", "machine": "arm64", "processor": "arm"}
OWN = {"RUNNER_OS": "macOS", "RUNNER_ENVIRONMENT": "self-hosted"}
HOSTED = {"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "github-hosted"}

KINDS = [
    ("native", ARM | {"sysctl": M2}, "apple-silicon"),
    ("native without sysctl", ARM, "apple-silicon"),
    ("processor arm64", {"system": "Darwin", "processor": "arm64"}, "apple-silicon"),
    ("brand alone", {"sysctl": M2}, "apple-silicon"),
    ("brand as processor", {"processor": "Apple M1 Max", "system": "Darwin"}, "apple-silicon"),
    ("brand as cpu_brand", {"cpu_brand": "Apple M4"}, "apple-silicon"),
    ("metal device", {"metal_device": "Apple M2 Max"}, "apple-silicon"),
    ("phone chip", ARM | {"cpu_brand": "Apple A18 Pro"}, "apple-silicon"),
    ("no number", {"sysctl": {"machdep.cpu.brand_string": "Apple processor"}}, "apple-silicon"),
    ("kernel", {"sysctl": {"kern.version": "Darwin Kernel Version 24.6.0: root:xnu~1/RELEASE_ARM64_T8112"}}, "apple-silicon"),
    ("text of collect_env", {"product_version": "macOS 15.3.1 (24D70) (arm64)"}, "apple-silicon"),
    ("Mach-O suffix", {"platform_string": "macOS-26.5.2-arm64-arm-64bit-Mach-O"}, "apple-silicon"),
    ("darwin string", {"platform_string": "Darwin-21.2.0-arm64-arm-64bit"}, "apple-silicon"),
    ("all of mac_ver", {"mac_ver": ("15.3", ("", "", ""), "arm64")}, "apple-silicon"),
    ("uname as the system", {"system": "Darwin 25.5.0 arm64"}, "apple-silicon"),
    ("macOS 27", {"product_version": "27.0"}, "apple-silicon"),
    ("rosetta by brand", X86 | {"sysctl": M2}, "apple-silicon-rosetta"),
    ("rosetta by translation", X86 | {"sysctl": {"sysctl.proc_translated": "1"}}, "apple-silicon-rosetta"),
    ("rosetta by arm64", X86 | {"sysctl": {"hw.optional.arm64": "1"}}, "apple-silicon-rosetta"),
    ("rosetta by CPUID", X86 | {"cpu_brand": "VirtualApple @ 2.50GHz"}, "apple-silicon-rosetta"),
    ("rosetta by CPUID in sysctl", X86 | {"sysctl": {"machdep.cpu.brand_string": "VirtualApple @ 2.50GHz"}}, "apple-silicon-rosetta"),
    ("rosetta by model", X86 | {"sysctl": {"hw.model": "Mac15,12"}}, "apple-silicon-rosetta"),
    ("rosetta by older model", X86 | {"sysctl": {"hw.model": "MacBookAir10,1"}}, "apple-silicon-rosetta"),
    ("rosetta by kernel", X86 | {"sysctl": {"kern.version": "RELEASE_ARM64_T6000"}}, "apple-silicon-rosetta"),
    ("rosetta by metal", X86 | {"metal_device": "Apple M1"}, "apple-silicon-rosetta"),
    ("intel", X86 | {"sysctl": INTEL}, "intel-mac"),
    ("intel by proc_translated", X86 | {"sysctl": {"sysctl.proc_translated": "0"}}, "intel-mac"),
    ("intel by model", X86 | {"sysctl": {"hw.model": "MacBookPro16,1"}}, "intel-mac"),
    ("intel by metal", X86 | {"metal_device": "AMD Radeon Pro 5500M"}, "intel-mac"),
    ("x86 and no more", X86, "intel-mac"),
    ("vm by model", ARM | {"sysctl": {"hw.model": "VirtualMac2,1"}}, "mac-vm"),
    ("vm by brand", ARM | {"cpu_brand": "Apple M1 (Virtual)"}, "mac-vm"),
    ("vm by metal", ARM | {"metal_device": "Apple Paravirtual device"}, "mac-vm"),
    ("vm by kernel", ARM | {"sysctl": M2 | {"kern.hv_vmm_present": "1"}}, "mac-vm"),
    ("vmware", X86 | {"sysctl": INTEL | {"hw.model": "VMware7,1"}}, "mac-vm"),
    ("hosted runner", ARM | {"environ": HOSTED}, "mac-vm"),
    ("hosted runner by image", ARM | {"environ": {"ImageOS": "macos15"}}, "mac-vm"),
    ("hosted runner's image alone", {"environ": {"ImageOS": "macos15"}}, "mac-vm"),
    ("own runner", ARM | {"environ": HOSTED | {"RUNNER_ENVIRONMENT": "self-hosted"}}, "apple-silicon"),
    ("bare metal runner", ARM | {"environ": {"GITHUB_ACTIONS": "true"}, "sysctl": M2 | {"kern.hv_vmm_present": "0"}}, "apple-silicon"),
    ("vm by kernel's name", {"platform_string": "Darwin Mac 23.6.0 root:xnu~1/RELEASE_ARM64_VMAPPLE arm64"}, "mac-vm"),
    ("vm by CPU features", X86 | {"sysctl": INTEL | {"machdep.cpu.features": "FPU SSE VMM"}}, "mac-vm"),
    ("vm by QEMU's CPU", X86 | {"sysctl": {"machdep.cpu.brand_string": "QEMU Virtual CPU version 2.5+"}}, "mac-vm"),
    ("vm by graphics", X86 | {"metal_device": "VMware SVGA 3D"}, "mac-vm"),
    ("vm by its program", ARM | {"product_version": "macOS 14.2 in UTM 4.5"}, "mac-vm"),
    ("vm by its framework", ARM | {"product_version": "macOS 15.1 (Apple Virtualization)"}, "mac-vm"),
    ("runner by name", {"product_version": "macos-latest runner"}, "mac-vm"),
    ("runner by owner", ARM | {"product_version": "macOS 14.7, GitHub Actions"}, "mac-vm"),
    ("runner by image", {"platform_string": "macos-13 x86_64 runner"}, "mac-vm"),
    ("developer kit", {"sysctl": {"hw.model": "ADP3,2"}}, "apple-silicon"),
    ("developer kit, translated", X86 | {"sysctl": {"hw.model": "ADP3,2"}}, "apple-silicon-rosetta"),
    ("product", {"sysctl": {"hw.product": "Mac14,5"}}, "apple-silicon"),
    ("hw.machine", {"sysctl": {"hw.machine": "arm64"}}, "apple-silicon"),
    ("hw.machine of Intel", {"sysctl": {"hw.machine": "x86_64", "hw.model": "Macmini8,1"}}, "intel-mac"),
    ("second level of cores", {"sysctl": {"hw.perflevel1.physicalcpu": "4"}}, "apple-silicon"),
    ("second level, translated", X86 | {"sysctl": {"hw.perflevel1.physicalcpu": "4"}}, "apple-silicon-rosetta"),
    ("one level", X86 | {"sysctl": {"hw.perflevel0.physicalcpu": "6"}}, "intel-mac"),
    ("chip without its maker", {"system": "Darwin", "cpu_brand": "M3 Max"}, "apple-silicon"),
    ("Metal without its maker", {"system": "Darwin", "metal_device": "M3 Max"}, "apple-silicon"),
    ("Metal architecture", {"system": "Darwin", "metal_device": "applegpu_g13g"}, "apple-silicon"),
    ("last before Apple silicon", {"system": "Darwin", "product_version": "10.15.7"}, "intel-mac"),
    ("Darwin 19", {"platform_string": "Darwin-19.6.0"}, "intel-mac"),
    ("10.16 is no version", {"system": "Darwin", "mac_ver": "10.16"}, "other"),
    ("macOS 26 is for both", X86 | {"product_version": "26.0"}, "intel-mac"),
    ("macOS 27, translated", X86 | {"product_version": "27.0"}, "apple-silicon-rosetta"),
    ("own ARM runner", {"environ": OWN | {"RUNNER_ARCH": "ARM64"}}, "apple-silicon"),
    ("own ARM runner, x86 Python", X86 | {"environ": OWN | {"RUNNER_ARCH": "ARM64"}}, "apple-silicon-rosetta"),
    ("own x86 runner", {"environ": OWN | {"RUNNER_ARCH": "X64"}}, "intel-mac"),
    ("x86 runner, ARM Python", ARM | {"environ": OWN | {"RUNNER_ARCH": "X64"}}, "apple-silicon"),
    ("linux", {"system": "Linux", "machine": "aarch64"}, "linux"),
    ("linux by name", {"product_version": "Ubuntu 22.04.4 LTS (x86_64)"}, "linux"),
    ("linux by another name", {"product_version": "Debian GNU/Linux 12 (bookworm) (aarch64)"}, "linux"),
    ("windows by name", {"product_version": "Microsoft Windows 11 Pro (10.0.22631 64-bit)"}, "windows"),
    ("linux by string", {"platform_string": "Linux-6.1.0-x86_64-with-glibc2.36"}, "linux"),
    ("linux on a Mac's Rosetta", {"system": "Linux", "cpu_brand": "VirtualApple @ 2.50GHz"}, "linux"),
    ("asahi", {"system": "Linux", "machine": "aarch64", "cpu_brand": "Apple M1"}, "linux"),
    ("cgroups only", {"cgroup": {"cpu.max": "max 100000"}}, "linux"),
    ("windows", {"system": "Windows", "machine": "ARM64"}, "windows"),
    ("windows by string", {"platform_string": "Windows-10-10.0.19045-SP0"}, "windows"),
    ("cygwin", {"system": "CYGWIN_NT-10.0"}, "windows"),
    ("freebsd", {"system": "FreeBSD", "machine": "arm64"}, "other"),
    ("macOS and no more", {"product_version": "15.6"}, "other"),
    ("nothing", {}, "other"),
]  # fmt: skip

VERSIONS = [
    ({"product_version": "15.3"}, "15.3"),
    ({"product_version": "26"}, "26"),
    ({"product_version": "macOS 15.3.1 (24D70) (arm64)"}, "15.3.1"),
    ({"product_version": "Version 15.3.1 (Build 24D70)"}, "15.3.1"),
    ({"product_version": "Mac OS X 10.15.7"}, "10.15.7"),
    ({"product_version": "10.16", "sysctl": {"kern.osproductversion": "14.5"}}, "14.5"),
    ({"platform_string": "macOS-10.16-x86_64-i386-64bit", "product_version": "15.3"}, "15.3"),
    ({"platform_string": "macOS-10.16-x86_64-i386-64bit", "mac_ver": "13.2"}, "13.2"),
    ({"platform_string": "macOS-10.16-x86_64-i386-64bit", "mac_ver": "10.16"}, None),
    ({"mac_ver": "10.16", "sysctl": {"kern.osrelease": "24.3.0"}}, "15"),
    ({"mac_ver": "16.4"}, "26.4"),
    ({"mac_ver": "16.0", "product_version": "26.0.1"}, "26.0.1"),
    ({"platform_string": "macOS-26.6.2-arm64-arm-64bit-Mach-O"}, "26.6.2"),
    ({"platform_string": "Darwin-25.5.0-arm64-arm-64bit"}, "26"),
    ({"product_version": "Darwin 20.5.0 RELEASE_ARM64_T8101"}, "11"),
    ({"platform_string": "Darwin-19.6.0-x86_64-i386-64bit"}, "10.15"),
    ({"platform_string": "Darwin-3.2"}, None),
    ({"mac_ver": ("14.1", ("", "", ""), "arm64")}, "14.1"),
    ({"product_version": "rubbish"}, None),
]


@pytest.mark.parametrize(("facts", "kind"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_kind(facts, kind):
    host = Host.from_readings(Readings(**facts))
    assert host.kind == kind
    assert host.signs or kind == "other"


@pytest.mark.parametrize(("facts", "version"), VERSIONS)
def test_macos_version(facts, version):
    assert Host.from_readings(Readings(system="Darwin", **facts)).os_version == version


def test_what_cannot_be_told_says_so():
    assert "undetermined" in Host.from_readings(Readings(**X86)).signs[-1]
    assert "undetermined" in Host.from_readings(Readings(product_version="15.6")).signs[-1]
    told = Host.from_readings(Readings(**X86, sysctl=INTEL))
    assert not any("undetermined" in sign for sign in told.signs)


def test_performance_levels_by_name():
    sysctl = M2 | {"hw.perflevel0.physicalcpu": "8", "hw.perflevel1.physicalcpu": "4"}
    host = Host.from_readings(Readings(**ARM, sysctl=sysctl))
    assert (host.performance_cores, host.efficiency_cores) == (8, 4)
    names = {"hw.perflevel0.name": "Super", "hw.perflevel1.name": "Performance"}
    host = Host.from_readings(Readings(**ARM, sysctl=sysctl | names))
    assert (host.performance_cores, host.efficiency_cores) == (12, 0)


def test_levels_without_names_follow_the_table():
    levels = {"hw.perflevel0.physicalcpu": "6", "hw.perflevel1.physicalcpu": "12"}
    brand = {"machdep.cpu.brand_string": "Apple M5 Max"}
    host = Host.from_readings(Readings(**ARM, sysctl=brand | levels))
    assert (host.performance_cores, host.efficiency_cores) == (18, 0)


def test_cores_come_from_the_table_without_levels():
    host = Host.from_readings(Readings(**ARM, cpu_brand="Apple M1"))
    assert (host.performance_cores, host.efficiency_cores, host.logical_cpus) == (4, 4, 8)


@pytest.mark.parametrize(("gib", "cores"), [(36, 32), (64, 40)])
@pytest.mark.parametrize("read", ["psutil", "sysctl"])
def test_the_variant_of_a_chip_follows_the_memory(gib, cores, read):
    """Apple sells the M4 Max of 32 GPU cores with 36 GB, that of 40 with more."""
    brand = {"machdep.cpu.brand_string": "Apple M4 Max"}
    memory = {"memory_total": gib * 1024**3} if read == "psutil" else {}
    sysctl = brand if read == "psutil" else brand | {"hw.memsize": str(gib * 1024**3)}
    assert Host.from_readings(Readings(**ARM, sysctl=sysctl, **memory)).gpu_cores == cores


def test_memory_of_a_mac():
    sysctl = M2 | {"hw.memsize": str(34359738368), "iogpu.wired_limit_mb": "24000"}
    host = Host.from_readings(Readings(**ARM, sysctl=sysctl))
    assert host.memory_total_bytes == 32 * 1024**3
    assert host.wired_limit_bytes == 24000 * 1024**2
    none = Host.from_readings(Readings(**ARM, sysctl=M2 | {"iogpu.wired_limit_mb": "0"}))
    assert none.wired_limit_bytes is None


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, "Mac with Apple silicon, macOS."),
        ({"logical_cpus": 1}, "macOS. 1 usable CPU."),
        ({"logical_cpus": 8}, "macOS. 8 usable CPUs."),
        ({"affinity": 3}, "macOS. 3 usable CPUs."),
        ({"cpu_brand": "Apple M1"}, ". 8 usable CPUs (4 performance cores)."),
        (
            {"python_version": "3.11.7", "torch_version": "2.13.0"},
            "macOS. Python 3.11.7, torch 2.13.0.",
        ),
    ],
)
def test_the_sentences_on_cpus_and_versions(facts, sentence):
    assert str(Host.from_readings(Readings(**ARM, **facts))).endswith(sentence)


@pytest.mark.parametrize(
    ("read", "kept"), [(0, 0), (5, 5), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, None), (-1, None)]
)
def test_what_is_free_or_swapped_may_be_nothing_and_is_never_negative(read, kept):
    names = {"memory_available": read, "swap_total": read, "swap_used": read}
    host = Host.from_readings(Readings(**ARM, **names))
    found = (host.memory_available_bytes, host.swap_total_bytes, host.swap_used_bytes)
    assert found == (kept, kept, kept)


def test_what_is_not_told_of_a_host_is_unknown_and_it_is_no_virtual_machine():
    host = Host(kind=HostKind.LINUX, os_name="Linux")
    told = {"kind", "os_name", "usable_cpus", "is_vm", "is_hosted_runner", "signs"}
    assert (host.usable_cpus, host.is_vm, host.is_hosted_runner, host.signs) == (
        1,
        False,
        False,
        (),
    )
    assert all(getattr(host, name) is None for name in set(Host.model_fields) - told)


def test_a_brand_that_names_the_chip_is_preferred_to_rosettas():
    sysctl = {"machdep.cpu.brand_string": "VirtualApple @ 2.50GHz"}
    for known in ({"cpu_brand": "Apple M2"}, {"metal_device": "Apple M2"}):
        host = Host.from_readings(Readings(**X86, sysctl=sysctl, **known))
        assert (host.cpu_name, host.chip.name) == ("Apple M2", "M2")
    host = Host.from_readings(Readings(**X86, sysctl=sysctl))
    assert (host.cpu_name, host.chip) == ("VirtualApple @ 2.50GHz", None)


def test_str_is_one_paragraph():
    host = Host.from_readings(
        Readings(**ARM, sysctl=M2, product_version="15.6", memory_total=2**34)
    )
    assert str(host).startswith("Mac with Apple silicon (M2 Pro), macOS 15.6. 16.00 GiB of RAM.")
    assert "\n" not in str(host)
    assert host.summary == "M2 Pro, 16.00 GiB, macOS 15.6"


def test_json_is_complete():
    host = Host.from_readings(Readings(**ARM, sysctl=M2))
    assert Host.model_validate_json(host.model_dump_json()) == host
    assert json.loads(host.model_dump_json())["chip"]["name"] == "M2 Pro"


def test_only_readings_are_taken():
    with pytest.raises(ArgumentTypeError) as caught:
        Host.from_readings("arm64")
    assert caught.value.given == "arm64"


def test_detect_host_is_kept_until_asked_again():
    first = detect_host()
    assert detect_host() is first
    assert detect_host(refresh=True).kind is first.kind
    previous = replace_readings(Readings(**ARM, sysctl=M2))
    try:
        assert detect_host().kind is HostKind.APPLE_SILICON
    finally:
        replace_readings(previous)
    assert detect_host().kind is first.kind


def test_a_wrong_type_is_a_reading_that_failed():
    readings = Readings(memory_total="much", sysctl=3, system=None, environ=["CI"], machine=7)
    assert readings == Readings()
    assert Readings(sysctl="hw.memsize: 1024\nhw.ncpu=8\nrubbish").sysctl == {
        "hw.memsize": "1024",
        "hw.ncpu": "8",
    }


# Pieces that mean something, glued to each other and to noise.
PIECES = st.sampled_from(
    [
        "Apple",
        "M",
        "M9",
        "A18",
        "Pro",
        "Max",
        "Ultra",
        "(Virtual)",
        "VirtualApple",
        "Intel(R)",
        "i386",
        "x86_64",
        "arm64",
        "Darwin",
        "macOS-",
        "10.16",
        "16.4",
        "15.6",
        "99",
        "26",
        "Linux",
        "Windows",
        "Mac",
        "VirtualMac2,1",
        "Mac15,12",
        "RELEASE_ARM64_",
        "-1",
        "0",
        "1",
        "max",
        "9223372036854771712",
        "1e9",
        "²",
        "٣",
        "100000",
        ":",
        "=",
        "runner",
        "Paravirtual",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=40), st.lists(PIECES, max_size=6).map(" ".join), st.lists(PIECES).map("".join)
)
NAMES = st.sampled_from(
    [
        "hw.model",
        "hw.memsize",
        "hw.ncpu",
        "hw.physicalcpu",
        "hw.cputype",
        "hw.optional.arm64",
        "hw.perflevel0.physicalcpu",
        "hw.perflevel1.physicalcpu",
        "hw.perflevel0.name",
        "machdep.cpu.brand_string",
        "machdep.cpu.features",
        "kern.osproductversion",
        "kern.osrelease",
        "kern.version",
        "kern.hv_vmm_present",
        "sysctl.proc_translated",
        "iogpu.wired_limit_mb",
        "cpu.max",
        "a/cpu.max",
        "memory.max",
        "memory.limit_in_bytes",
        "cpu/cpu.cfs_quota_us",
        "cpu/cpu.cfs_period_us",
        "RUNNER_OS",
        "RUNNER_ENVIRONMENT",
        "ImageOS",
        "GITHUB_ACTIONS",
    ]
)
MAPS = st.one_of(st.none(), st.dictionaries(NAMES, TEXTS, max_size=8), TEXTS)
VALUES = st.one_of(st.none(), TEXTS, st.integers(), st.floats(), st.binary(max_size=4))
FIELDS = {
    name: MAPS if name in ("sysctl", "environ", "cgroup", "power") else VALUES
    for name in Readings.model_fields
}


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_no_reading_makes_it_raise(fields):
    host = Host.from_readings(Readings(**fields))
    assert host.usable_cpus >= 1
    assert str(host)
    assert host.summary
    assert host.os_version is None or not host.os_version.startswith("10.16") or not host.is_mac
    assert Host.model_validate_json(host.model_dump_json()) == host


@pytest.mark.parametrize("unit", ["macos-1 ", "macos-1 x runner ", "version ", "macos ", "darwin "])
def test_a_long_text_takes_time_in_proportion(unit):
    """By steps that are quadratic in its length these would take an hour."""
    text = unit * (10**6 // len(unit))
    sysctl = {"kern.version": text, "hw.model": text, "machdep.cpu.brand_string": text}
    host = Host.from_readings(Readings(system="Darwin", product_version=text, sysctl=sysctl))
    assert host.is_hosted_runner is False


@pytest.mark.parametrize(
    ("text", "virtual"),
    [
        ("macos-15 on a runner", True),
        ("macOS-latest, Runner Image", True),
        ("github-hosted", True),
        ("a runner of macos-15", False),
        ("macos-15 runners", False),
        ("macos-15\nrunner", False),
    ],
)
def test_a_text_that_names_a_runner(text, virtual):
    host = Host.from_readings(Readings(system="Darwin", machine="arm64", product_version=text))
    assert host.is_vm is virtual


@pytest.mark.parametrize(
    ("cpu", "virtual"),
    [
        ("QEMU Virtual CPU version 2.5+", True),
        ("qemu64", True),
        ("AMD EPYC 7763", False),
        ("", False),
    ],
)
def test_a_virtual_processor_on_linux(cpu, virtual):
    assert Host.from_readings(Readings(system="Linux", cpu_brand=cpu)).is_vm is virtual


@pytest.mark.parametrize(
    ("total", "sysctl", "found"),
    [
        (None, {"hw.memsize": "17179869184"}, 16 * 2**30),
        (8 * 2**30, {"hw.memsize": "17179869184"}, 8 * 2**30),
        (0, {"hw.memsize": "17179869184"}, 16 * 2**30),
        (None, {"hw.memsize": "-1"}, None),
        (None, {"hw.memsize": "many"}, None),
        (None, None, None),
        (1 << 63, None, None),
    ],
)
def test_the_memory_of_the_machine(total, sysctl, found):
    readings = Readings(system="Darwin", memory_total=total, sysctl=sysctl)
    assert Host.from_readings(readings).memory_total_bytes == found


@pytest.mark.parametrize(
    "readings",
    [
        Readings(environ={"RUNNER_OS": "macOS"}),
        Readings(environ={"ImageOS": "macos15"}),
        Readings(platform_string="macOS-15.3.1-arm64"),
        Readings(product_version="15.6"),
        Readings(mac_ver="14.5"),
        Readings(sysctl={"kern.version": "Darwin Kernel Version 24.1"}),
        Readings(sysctl={"kern.hv_vmm_present": "0"}),
        Readings(sysctl={"sysctl.proc_translated": "0"}),
        Readings(sysctl={"hw.optional.arm64": "1"}),
        Readings(sysctl={"iogpu.wired_limit_mb": "0"}),
        Readings(sysctl={"hw.model": "Mac16,5"}),
        Readings(sysctl={"hw.machine": "arm64"}),
        Readings(metal_device="Apple M1"),
        Readings(cpu_brand="Apple M2"),
        Readings(machine="arm64"),
        Readings(processor="arm"),
        Readings(processor="i386"),
    ],
    ids=range(17),
)
def test_one_piece_of_evidence_is_enough_for_a_mac(readings):
    assert Host.from_readings(readings).is_mac


@pytest.mark.parametrize(
    "readings",
    [
        Readings(),
        Readings(machine="ARM64"),
        Readings(machine="x86_64"),
        Readings(machine="arm64", cgroup={"cpu.max": "max 100000"}),
        Readings(machine="arm64", environ={"RUNNER_OS": "Linux"}),
        Readings(machine="arm64", environ={"RUNNER_OS": "Windows"}),
        Readings(machine="arm64", platform_string="Ubuntu 22.04"),
        Readings(machine="arm64", product_version="Microsoft Windows 11"),
        Readings(machine="arm64", system="Linux"),
        Readings(sysctl={"kern.ostype": "FreeBSD"}),
    ],
    ids=range(10),
)
def test_what_is_no_evidence_for_a_mac(readings):
    assert not Host.from_readings(readings).is_mac
