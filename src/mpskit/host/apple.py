"""Pure rules about Macs: the real macOS version, Rosetta, virtual machines, cores.

Each rule takes :class:`Readings` and names the signs that it found, so that a verdict can be
checked. ``docs/host.md`` describes the evidence for the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mpskit.host.chips import Chip
from mpskit.host.readings import Readings

__all__ = [
    "brand",
    "core_counts",
    "foreign_system",
    "hardware_signs",
    "is_mac",
    "macos_version",
    "model",
    "number",
    "process_signs",
    "vm_signs",
    "wired_limit_bytes",
]

# Patterns are strings: `re` compiles and caches each on its first use, not at import.
_VERSION = r"(?i)(?:^|mac\s?os(?:\s?x)?[\s-]*|version[\s:]*)(\d{2}(?:\.\d{1,3}){0,2})(?!\d)"
_DARWIN = r"(?i)darwin(?: kernel version)?[\s-]*(\d{2})\.\d+"
_KERNEL = r"(\d{2})\.\d+(?:\.\d+)?"
_MAC_TEXT = r"(?i)\s*(?:mac\s?os|os ?x\b|darwin)"
_MAC_MODEL = r"(MacBookAir|MacBookPro|Macmini|iMacPro|iMac|MacPro|MacBook|Mac|ADP)(\d+),\d+"
# The first model number of each product with an Apple chip; a plain "Mac13,1" always has one.
# ADP3,2 is the Developer Transition Kit of 2020.
_FIRST_APPLE_MODEL = {
    "MacBookAir": 10,
    "MacBookPro": 17,
    "Macmini": 9,
    "iMac": 21,
    "Mac": 13,
    "ADP": 3,
}
_APPLE_CHIP = r"(?i)apple|[am]\d{1,3}(?![\w-])"
_VM_TEXT = (
    r"(?i)virtualmac|macvm|vmware|vmapple|paravirt|parallels|virtualbox|qemu|kvm|\(virtual\)"
    r"|virtualiz|virtual machine|hypervisor|\b(?:utm|tart|anka|orka|vm)\b"
)
_RUNNER_IMAGE = r"(?i)\bmacos-(?:\d+|latest)\b"
_RUNNER_TEXT = r"(?i)\bgithub(?:-hosted| actions)\b"
_MAC_SYSCTL = ("kern.osproductversion", "sysctl.proc_translated", "kern.hv_vmm_present")
_MAC_SYSCTL_PREFIXES = ("hw.perflevel", "hw.optional.", "iogpu.", "machdep.cpu.", "hw.cpu")
_FOREIGN_SYSTEM = (
    r"(?i)^\s*(?:microsoft )?(?P<windows>windows)|^\s*linux|gnu/linux|^\s*(?:ubuntu|debian)\b"
    r"|^\s*(?:centos|fedora|red hat|rocky|almalinux|amazon|alpine|arch|opensuse|suse)\b"
)
_NOT_BRANDS = ("", "arm", "arm64", "aarch64", "i386", "x86_64", "amd64", "unknown")
_X86 = ("i386", "x86_64", "amd64")
_ARM = ("arm", "arm64", "aarch64", "arm64e")
# What Darwin calls 64-bit ARM and x86 (mach/machine.h): the CPU type with the 64-bit flag.
_CPU_TYPES = {"16777228": "arm64", "16777223": "x86_64"}


def number(text: str | None) -> int | None:
    """Return the integer that a text is, or None if it is none."""
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text, re.ASCII) else None


def sysctl(readings: Readings, name: str) -> str:
    """Return the text of one sysctl, empty if it is not known."""
    return (readings.sysctl or {}).get(name, "").strip()


def is_mac(readings: Readings) -> bool:
    """Return whether the readings come from macOS; ``system`` decides where it is known."""
    if readings.system:
        return re.match(_MAC_TEXT, readings.system) is not None
    return any(_mac_evidence(readings))


def foreign_system(text: str) -> str | None:
    """Return Linux or Windows if a description of a system names one, else None."""
    found = re.search(_FOREIGN_SYSTEM, text)
    return found and ("Windows" if found["windows"] else "Linux")


def _mac_evidence(readings: Readings) -> Iterable[bool]:
    environ = readings.environ or {}
    runner = environ.get("RUNNER_OS", "").lower()
    texts = [readings.platform_string or "", readings.product_version or ""]
    if any(map(foreign_system, texts)) or runner in ("linux", "windows") or readings.cgroup:
        return
    yield runner == "macos" or environ.get("ImageOS", "").lower().startswith("macos")
    yield any(re.match(_MAC_TEXT, text) for text in (*texts, sysctl(readings, "kern.version")))
    yield any(re.match(_VERSION, text.strip()) for text in (*texts[1:], readings.mac_ver or ""))
    names = readings.sysctl or {}
    yield any(name in names for name in _MAC_SYSCTL)
    yield any(name.startswith(_MAC_SYSCTL_PREFIXES) for name in names)
    yield re.match(_MAC_MODEL, model(readings)) is not None
    yield sysctl(readings, "hw.machine") == "arm64"
    yield bool(readings.metal_device)
    yield "apple" in brand(readings).lower()
    yield (readings.machine or "").lower() == "arm64" and readings.machine != "ARM64"
    yield (readings.processor or "").lower() in ("arm", "i386")


def macos_version(readings: Readings) -> str | None:
    """Return the real macOS version; None if only impossible versions are known.

    macOS tells a Python that is linked against an old SDK 10.16 (for 11 and later) or 16.x (for
    26.x). 16.x can be mapped back, because it keeps the minor number; 10.16 cannot. The kernel's
    version gives the major number where nothing better is known.
    """
    kernel = sysctl(readings, "kern.osproductversion")
    texts = [kernel, readings.product_version, readings.platform_string, readings.mac_ver]
    texts.append(readings.system)
    ours = [text.strip() for text in texts if text and not text.lower().startswith("darwin")]
    found = [match[1] for text in ours if (match := re.search(_VERSION, text))]
    majors = [int(version.partition(".")[0]) for version in found]
    for version, major in zip(found, majors, strict=True):
        if (major == 10 and not version.startswith("10.16")) or 11 <= major < 16 or major > 25:
            return version
    renamed = next((version for version in found if version.startswith("16")), None)
    return f"26{renamed[2:]}" if renamed else _from_kernel(readings)


def _from_kernel(readings: Readings) -> str | None:
    release = re.match(_KERNEL, sysctl(readings, "kern.osrelease"))
    texts = (readings.platform_string, readings.product_version, sysctl(readings, "kern.version"))
    matches = [release, *(re.search(_DARWIN, text or "") for text in texts)]
    major = next((int(match[1]) for match in matches if match), 0)
    if major < 20:
        return f"10.{major - 4}" if major >= 10 else None
    # Darwin 20 is macOS 11 and 24 is 15; macOS then jumped from 15 to 26, Darwin did not.
    return str(major - 9 if major < 25 else major + 1)


def model(readings: Readings) -> str:
    """Return the Mac's model identifier, ``Mac16,5``; empty if it is not known."""
    return sysctl(readings, "hw.model") or sysctl(readings, "hw.product")


def brand(readings: Readings) -> str:
    """Return the processor's brand, empty if no field has one.

    A brand that names a chip is preferred to ``VirtualApple``, which is all that CPUID shows under
    Rosetta.
    """
    texts = (sysctl(readings, "machdep.cpu.brand_string"), readings.cpu_brand, readings.processor)
    stripped = [(text or "").strip() for text in texts]
    brands = [text for text in stripped if text.lower() not in _NOT_BRANDS]
    real = [text for text in brands if "virtualapple" not in text.lower()]
    if not real and re.match(r"apple [am]\d", readings.metal_device or "", re.IGNORECASE):
        real = [readings.metal_device or ""]
    return next(iter([*real, *brands]), "")


def hardware_signs(readings: Readings) -> list[tuple[str, str]]:
    """Return the signs of the Mac's processor, as pairs of architecture and sign."""
    name = brand(readings)
    lower = name.lower()
    second = number(sysctl(readings, "hw.perflevel1.physicalcpu"))
    runner = (readings.environ or {}).get("RUNNER_ARCH", "").upper()
    signs = [
        ("arm64", f"the processor is {name}" if _names_apple_chip(name) else ""),
        ("x86_64", f"the processor is {name}" if re.search("intel|amd|xeon", lower) else ""),
        ("arm64", "hw.optional.arm64 is 1" if sysctl(readings, "hw.optional.arm64") == "1" else ""),
        ("arm64", _translation(readings)),
        *_kernel_signs(readings),
        *_model_signs(readings),
        *_metal_signs(readings),
        ("arm64", "there are two levels of cores" if second and second > 0 else ""),
        ("arm64", "the CI runner is of ARM64" if runner == "ARM64" else ""),
        *_version_signs(readings),
    ]
    return [(architecture, sign) for architecture, sign in signs if sign]


def _names_apple_chip(name: str) -> bool:
    return "apple" in name.lower() or re.match(_APPLE_CHIP, name) is not None


def _version_signs(readings: Readings) -> list[tuple[str, str]]:
    """The first macOS for Apple silicon is 11, and 26 is the last for Intel."""
    version = macos_version(readings)
    major = int(version.partition(".")[0]) if version else 0
    if major == 10:
        return [("x86_64", f"macOS {version} runs on Intel only")]
    return [("arm64", f"macOS {version} runs on Apple silicon only")] if major >= 27 else []


def _translation(readings: Readings) -> str:
    """Return the sign of Rosetta's sysctl. Intel Macs lack it, so that 0 is a sign of arm64 too."""
    value = sysctl(readings, "sysctl.proc_translated")
    telling = value == "1" or (value == "0" and not _is(readings.machine, _X86))
    return f"sysctl.proc_translated is {value}" if telling else ""


def _kernel_signs(readings: Readings) -> list[tuple[str, str]]:
    """Return what the kernel shows: its build's architecture, also to a translated process."""
    texts = (sysctl(readings, "kern.version"), readings.platform_string, readings.product_version)
    found = [re.search(r"RELEASE_(ARM64|X86_64)", text or "") for text in texts]
    return [(match[1].lower(), f"the kernel is {match[0]}") for match in found if match]


def _model_signs(readings: Readings) -> list[tuple[str, str]]:
    match = re.match(_MAC_MODEL, model(readings))
    if match is None:
        return []
    first = _FIRST_APPLE_MODEL.get(match[1])
    apple = first is not None and int(match[2]) >= first
    return [("arm64" if apple else "x86_64", f"hw.model is {match[0]}")]


def _metal_signs(readings: Readings) -> list[tuple[str, str]]:
    name = readings.metal_device or ""
    if re.search("radeon|amd|intel|nvidia|geforce", name, re.IGNORECASE):
        return [("x86_64", f"the Metal device is {name}")]
    apple = re.match(_APPLE_CHIP, name) and "paravirt" not in name.lower()
    return [("arm64", f"the Metal device is {name}")] if apple else []


def process_signs(readings: Readings) -> list[tuple[str, str]]:
    """Return the signs of this Python's own architecture, as pairs of architecture and sign."""
    signs = [
        ("x86_64", "sysctl.proc_translated is 1" if _translation(readings)[-1:] == "1" else ""),
        ("x86_64", "CPUID says VirtualApple" if _says_virtual_apple(readings) else ""),
        ("x86_64", "the processor is i386" if _is(readings.processor, ("i386",)) else ""),
        ("x86_64", "CPU features are those of x86" if _has_x86_features(readings) else ""),
        ("x86_64", f"the machine is {readings.machine}" if _is(readings.machine, _X86) else ""),
        ("arm64", f"the machine is {readings.machine}" if _is(readings.machine, _ARM) else ""),
        (
            "arm64",
            f"the processor is {readings.processor}" if _is(readings.processor, _ARM) else "",
        ),
        *_text_signs(readings),
        *_cpu_type_signs(readings),
        *_machine_signs(readings),
    ]
    return [(architecture, sign) for architecture, sign in signs if sign]


def _is(text: str | None, words: tuple[str, ...]) -> bool:
    first = (text or "").lower().split()
    return bool(first) and first[0] in words


def _says_virtual_apple(readings: Readings) -> bool:
    texts = (sysctl(readings, "machdep.cpu.brand_string"), readings.cpu_brand, readings.processor)
    return any("virtualapple" in (text or "").lower() for text in texts)


def _has_x86_features(readings: Readings) -> bool:
    return {"FPU", "SSE", "TSC"} & set(sysctl(readings, "machdep.cpu.features").split()) != set()


def _text_signs(readings: Readings) -> list[tuple[str, str]]:
    signs = []
    texts = (readings.platform_string, readings.product_version, readings.mac_ver, readings.system)
    for text in filter(None, texts):
        if re.search(r"(?<![A-Za-z_])(?:x86_64|i386)\b", text):
            signs.append(("x86_64", f"the platform is {text}"))
        elif re.search(r"(?<![A-Za-z_])arm64\b", text, re.IGNORECASE):
            signs.append(("arm64", f"the platform is {text}"))
    return signs


def _cpu_type_signs(readings: Readings) -> list[tuple[str, str]]:
    kind = sysctl(readings, "hw.cputype")
    return [(_CPU_TYPES[kind], f"hw.cputype is {kind}")] if kind in _CPU_TYPES else []


def _machine_signs(readings: Readings) -> list[tuple[str, str]]:
    """Return signs that may be those of another process, where Python's own are missing."""
    if readings.machine or readings.processor:
        return []
    kernel = sysctl(readings, "hw.machine")
    runner = (readings.environ or {}).get("RUNNER_ARCH", "").upper()
    return [
        ("x86_64", f"hw.machine is {kernel}" if _is(kernel, _X86) else ""),
        ("arm64", f"hw.machine is {kernel}" if _is(kernel, _ARM) else ""),
        ("x86_64", "the CI runner is of X64" if runner == "X64" else ""),
    ]


def vm_signs(readings: Readings) -> list[str]:
    """Return the signs that macOS runs in a virtual machine."""
    identifier, name = model(readings), brand(readings)
    features = sysctl(readings, "machdep.cpu.features").split()
    said = (readings.product_version, readings.platform_string, sysctl(readings, "kern.version"))
    texts = [text for text in said if text]
    metal = readings.metal_device or ""
    signs = [
        f"hw.model is {identifier}" if re.search(_VM_TEXT, identifier) else "",
        f"the processor is {name}" if re.search(_VM_TEXT, name) else "",
        f"the Metal device is {metal}" if re.search(_VM_TEXT, metal) else "",
        "CPU features include VMM" if "VMM" in features else "",
        "kern.hv_vmm_present is 1" if sysctl(readings, "kern.hv_vmm_present") == "1" else "",
        *(f"the system is {text}" for text in texts if _names_runner(text)),
        *(f"the system is {text}" for text in texts if re.search(_VM_TEXT, text)),
    ]
    return [sign for sign in signs if sign]


def _names_runner(text: str) -> bool:
    image = re.search(_RUNNER_IMAGE, text)
    # In two steps, which are linear in the text's length, as `image.*runner` is not.
    after = text[image.end() :].partition("\n")[0] if image else ""
    return bool(re.search(r"(?i)\brunner\b", after) or re.search(_RUNNER_TEXT, text))


def wired_limit_bytes(readings: Readings) -> int | None:
    """Return the user's own limit on GPU memory (``iogpu.wired_limit_mb``), None if not set."""
    megabytes = number(sysctl(readings, "iogpu.wired_limit_mb"))
    return megabytes * 1024**2 if megabytes and 0 < megabytes < 1 << 30 else None


def core_counts(readings: Readings, chip: Chip | None) -> tuple[int | None, int | None]:
    """Return the numbers of performance and efficiency cores, by sysctl or else by the chip table.

    A chip without efficiency cores may still have two performance levels (M5 Pro and Max: super
    and performance). The levels' names tell them apart or, where they are missing, the table.
    """
    levels = [number(sysctl(readings, f"hw.perflevel{i}.physicalcpu")) for i in range(3)]
    names = [sysctl(readings, f"hw.perflevel{i}.name").lower() for i in range(3)]
    counts = [(count, name) for count, name in zip(levels, names, strict=True) if count]
    known = (chip.performance_cores, chip.efficiency_cores) if chip else (None, None)
    if not counts:
        return known
    if all(name for _, name in counts):
        efficiency = sum(count for count, name in counts if name.startswith("eff"))
        return sum(count for count, _ in counts) - efficiency, efficiency
    if None not in known and sum(filter(None, known)) == sum(count for count, _ in counts):
        return known
    return counts[0][0], sum(count for count, _ in counts[1:])
