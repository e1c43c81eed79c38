"""``Host``: what machine this is, derived from readings by pure rules."""

from __future__ import annotations

from typing import Any

from mpskit._base.arguments import shown
from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentTypeError
from mpskit.host import apple, linux
from mpskit.host.chips import Chip, parse_chip
from mpskit.host.kinds import HostKind
from mpskit.host.readings import Readings

__all__ = ["Host", "HostKind", "detect_host"]

_GIB = 1024**3


_KIND_TEXT = {
    HostKind.APPLE_SILICON: "Mac with Apple silicon",
    HostKind.APPLE_SILICON_ROSETTA: "Mac with Apple silicon, Python under Rosetta",
    HostKind.INTEL_MAC: "Intel Mac",
    HostKind.MAC_VM: "virtual Mac",
    HostKind.LINUX: "Linux machine",
    HostKind.WINDOWS: "Windows machine",
    HostKind.OTHER: "machine of another kind",
}


class Host(Value):
    """The machine this process runs on.

    Attributes:
        kind: what kind of machine; :attr:`is_mac` says whether it is macOS at all.
        os_name: macOS, Linux, Windows, or what the system calls itself.
        os_version: the real macOS version, or the kernel's on Linux; None if unknown.
        chip: the Apple chip, on a Mac with one.
        cpu_name: the processor's brand.
        model: the Mac's model identifier, ``Mac16,5``.
        memory_total_bytes: RAM.
        memory_available_bytes: what a new process could take without swapping, when read.
        memory_limit_bytes: the container's limit; None if it is not below the RAM.
        swap_total_bytes: swap space.
        swap_used_bytes: swap in use, when read.
        usable_cpus: CPUs that this process may use: the least of the machine's CPUs, its CPU
            affinity and the control groups' quota, rounded up.
        logical_cpus: CPUs of the machine.
        performance_cores: cores of an Apple chip that are not efficiency cores.
        efficiency_cores: its efficiency cores.
        gpu_cores: its GPU cores, if known.
        is_vm: whether the machine is known to be virtual (few signs are checked on Linux).
        is_hosted_runner: whether it is a CI provider's machine (GitHub Actions, Azure Pipelines).
        signs: the evidence for ``kind``, one short sentence each.
        metal_device: the name of the Metal device, if torch was asked.
        wired_limit_bytes: the user's ``iogpu.wired_limit_mb``, if set.
        gpu_memory_bytes: the memory of a discrete GPU, where the machine was named, not read.
        cuda_card: the name of a CUDA card that the machine was named by; then nothing but the card
            is known of it.
        python_version: such as ``3.12.4``.
        torch_version: the installed torch; None without one.
    """

    kind: HostKind
    os_name: str
    os_version: str | None = None
    chip: Chip | None = None
    cpu_name: str | None = None
    model: str | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_limit_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    usable_cpus: int = 1
    logical_cpus: int | None = None
    performance_cores: int | None = None
    efficiency_cores: int | None = None
    gpu_cores: int | None = None
    is_vm: bool = False
    is_hosted_runner: bool = False
    signs: tuple[str, ...] = ()
    metal_device: str | None = None
    wired_limit_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    cuda_card: str | None = None
    python_version: str | None = None
    torch_version: str | None = None

    @property
    def is_mac(self) -> bool:
        """Whether the system is macOS, on whatever processor, real or virtual."""
        return self.os_name == "macOS"

    @property
    def summary(self) -> str:
        """The machine in a few words: ``M3 Max, 64.00 GiB, macOS 15.6``."""
        if self.cuda_card and self.gpu_memory_bytes:
            return f"{self.cuda_card}, {format_bytes(self.gpu_memory_bytes)}"
        name = self.chip.name if self.chip else self.cpu_name or _KIND_TEXT[self.kind]
        memory = format_bytes(self.memory_total_bytes) if self.memory_total_bytes else None
        return ", ".join(part for part in (name, memory, self._system()) if part)

    def __str__(self) -> str:
        if self.cuda_card:
            return f"Machine with a CUDA card ({self.summary}); the rest of it is not known."
        parts = [self._first_sentence(), *self._memory_sentences(), self._cpu_sentence()]
        return " ".join(part for part in parts if part)

    def _system(self) -> str:
        return f"{self.os_name} {self.os_version}" if self.os_version else self.os_name

    def _first_sentence(self) -> str:
        known = str(self.chip) if self.chip else self.cpu_name
        kind = _KIND_TEXT[self.kind]
        what = f"{kind[0].upper()}{kind[1:]} ({known})" if known else f"{kind[0].upper()}{kind[1:]}"
        where = " on a hosted CI runner" if self.is_hosted_runner else ""
        return f"{what}{where}, {self._system()}."

    def _memory_sentences(self) -> list[str]:
        if not self.memory_total_bytes:
            return []
        parts = [f"{format_bytes(self.memory_total_bytes)} of RAM"]
        if self.memory_available_bytes is not None:
            parts.append(f"{format_bytes(self.memory_available_bytes)} available")
        if self.memory_limit_bytes:
            parts.append(f"a container limit of {format_bytes(self.memory_limit_bytes)}")
        if self.wired_limit_bytes:
            parts.append(
                f"GPU memory limited to {format_bytes(self.wired_limit_bytes)} by its user"
            )
        return [", ".join(parts) + "."]

    def _cpu_sentence(self) -> str:
        sentences = []
        if self.logical_cpus is not None or self.usable_cpus > 1:
            plural = "" if self.usable_cpus == 1 else "s"
            fast = self.performance_cores
            tiers = f" ({fast} performance cores)" if fast else ""
            sentences.append(f"{self.usable_cpus} usable CPU{plural}{tiers}.")
        versions = [f"Python {self.python_version}"] if self.python_version else []
        versions += [f"torch {self.torch_version}"] if self.torch_version else []
        sentences += [f"{', '.join(versions)}."] if versions else []
        return " ".join(sentences)

    @classmethod
    def from_readings(cls, readings: Readings) -> Host:
        """Return the host that the readings describe, a pure function of them.

        No text in them raises: what cannot be derived is None, or ``other`` for the kind.

        Raises:
            ArgumentTypeError: ``readings`` is not a :class:`Readings`.
        """
        if not isinstance(readings, Readings):
            raise ArgumentTypeError(
                f"readings must be Readings, got {shown(readings)}", given=readings
            )
        return cls(**_common(readings), **_particular(readings))


def _common(readings: Readings) -> dict[str, Any]:
    """Return the fields that every system has: memory, swap, versions."""
    total = _positive(readings.memory_total)
    total = total or _positive(apple.number(apple.sysctl(readings, "hw.memsize")))
    return {
        "memory_total_bytes": total,
        "memory_available_bytes": _count(readings.memory_available),
        "memory_limit_bytes": linux.memory_limit(readings.cgroup, total),
        "swap_total_bytes": _count(readings.swap_total),
        "swap_used_bytes": _count(readings.swap_used),
        "is_hosted_runner": is_hosted_runner(readings),
        "metal_device": readings.metal_device or None,
        "python_version": readings.python_version,
        "torch_version": readings.torch_version,
    }


def _positive(value: int | None) -> int | None:
    return value if value is not None and 0 < value < 1 << 63 else None


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value < 1 << 63 else None


def is_hosted_runner(readings: Readings) -> bool:
    """Return whether the variables are those of a runner that GitHub or Azure hosts.

    ``RUNNER_ENVIRONMENT`` says so directly; older images only have ``ImageOS``.
    """
    environ = {name.lower(): text.lower() for name, text in (readings.environ or {}).items()}
    environment = environ.get("runner_environment")
    if environment is not None:
        return environment == "github-hosted"
    return "imageos" in environ or environ.get("github_actions") == "true"


def _particular(readings: Readings) -> dict[str, Any]:
    """Return the fields that depend on the system."""
    if apple.is_mac(readings):
        return _mac(readings)
    name = _system_name(readings)
    kind = {"Linux": HostKind.LINUX, "Windows": HostKind.WINDOWS}.get(name, HostKind.OTHER)
    cpu = apple.brand(readings) or None
    virtual = cpu is not None and "qemu" in cpu.lower()
    return {
        "kind": kind,
        "os_name": name,
        "os_version": linux.system_version(readings.platform_string),
        "cpu_name": cpu,
        "is_vm": virtual or is_hosted_runner(readings),
        "signs": _foreign_signs(readings, name, cpu),
        **_cpus(readings, None),
    }


def _system_name(readings: Readings) -> str:
    text = readings.system or (readings.platform_string or "").partition("-")[0]
    text = text or apple.foreign_system(readings.product_version or "") or ""
    text = (
        text or (readings.environ or {}).get("RUNNER_OS", "") or ("Linux" * bool(readings.cgroup))
    )
    lower = text.strip().lower()
    if lower.startswith(("windows", "cygwin", "msys", "mingw")):
        return "Windows"
    return "Linux" if lower.startswith("linux") else text.strip()[:40] or "unknown system"


def _foreign_signs(readings: Readings, name: str, cpu: str | None) -> tuple[str, ...]:
    signs = [f"the system is {name}"]
    if cpu and "virtualapple" in cpu.lower():
        signs.append("CPUID says VirtualApple: an x86-64 guest translated on Apple silicon")
    return (*signs, *_runner_signs(readings))


def _runner_signs(readings: Readings) -> list[str]:
    return ["the variables are those of a hosted CI runner"] if is_hosted_runner(readings) else []


def _mac(readings: Readings) -> dict[str, Any]:
    virtual = _mac_vm_signs(readings)
    kind, signs = _mac_kind(readings, virtual)
    chip = None if kind is HostKind.INTEL_MAC else _chip(readings)
    performance, efficiency = apple.core_counts(readings, chip)
    return {
        "kind": kind,
        "os_name": "macOS",
        "os_version": apple.macos_version(readings),
        "chip": chip,
        "cpu_name": apple.brand(readings) or None,
        "model": apple.model(readings) or None,
        "performance_cores": performance,
        "efficiency_cores": efficiency,
        "gpu_cores": _positive(readings.metal_cores) or (chip.gpu_cores if chip else None),
        "is_vm": bool(virtual),
        "signs": tuple(dict.fromkeys(signs)),
        "wired_limit_bytes": apple.wired_limit_bytes(readings),
        **_cpus(readings, chip),
    }


def _mac_vm_signs(readings: Readings) -> list[str]:
    """Return the signs of a virtual Mac; a hosted runner is one unless its kernel denies it."""
    signs = apple.vm_signs(readings)
    bare = apple.sysctl(readings, "kern.hv_vmm_present") == "0"
    return signs if signs or bare else _runner_signs(readings)


def _mac_kind(readings: Readings, virtual: list[str]) -> tuple[HostKind, list[str]]:
    hardware, process = apple.hardware_signs(readings), apple.process_signs(readings)
    signs = [*virtual, *(sign for _, sign in (*hardware, *process))]
    architectures = {architecture for architecture, _ in process}
    # No Intel Mac runs ARM code, so one ARM sign is enough where the hardware shows nothing.
    apple_chip = hardware[0][0] == "arm64" if hardware else architectures != {"x86_64"}
    if virtual:
        return HostKind.MAC_VM, signs
    if not hardware and not process:
        return HostKind.OTHER, ["undetermined: macOS, and no sign of the processor"]
    if apple_chip:
        translated = "x86_64" in architectures
        return (HostKind.APPLE_SILICON_ROSETTA if translated else HostKind.APPLE_SILICON), signs
    if not hardware:
        signs.append("undetermined: an x86-64 Python, and no sign that tells Rosetta from Intel")
    return HostKind.INTEL_MAC, signs


def _chip(readings: Readings) -> Chip | None:
    total = readings.memory_total or apple.number(apple.sysctl(readings, "hw.memsize"))
    cores = apple.number(apple.sysctl(readings, "hw.physicalcpu"))
    return parse_chip(
        apple.brand(readings),
        gpu_cores=readings.metal_cores,
        cpu_cores=cores or readings.physical_cpus,
        ram_gib=round(total / _GIB) if total and 0 < total < 1 << 63 else None,
    )


def _cpus(readings: Readings, chip: Chip | None) -> dict[str, Any]:
    named = [apple.number(apple.sysctl(readings, f"hw.{name}")) for name in ("logicalcpu", "ncpu")]
    cores = (chip.performance_cores, chip.efficiency_cores) if chip else ()
    table = sum(filter(None, cores)) if cores and None not in cores else None
    counts = [_positive(count) for count in (readings.logical_cpus, *named, table)]
    logical = next((count for count in counts if count), None)
    quota = linux.cpu_quota(readings.cgroup)
    usable = linux.usable_cpus((logical, _positive(readings.affinity)), quota)
    return {"logical_cpus": logical, "usable_cpus": usable}


_cached: tuple[Readings | None, Host] | None = None


def detect_host(*, refresh: bool = False) -> Host:
    """Return the machine this process runs on; never raises.

    The answer is kept for the process, so its available memory is that of the first call.

    Args:
        refresh: read the machine again.
    """
    global _cached
    from mpskit.system.machine import read_readings, replaced_readings

    replaced = replaced_readings()
    if refresh or _cached is None or _cached[0] is not replaced:
        _cached = (replaced, Host.from_readings(read_readings()))
    return _cached[1]
