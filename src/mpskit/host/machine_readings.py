"""The readings that a described machine would give: the inverse of ``Host.from_readings``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mpskit.host.chips import parse_chip
from mpskit.host.kinds import HostKind
from mpskit.host.readings import Readings

if TYPE_CHECKING:
    from mpskit.host.machines import Machine

__all__ = ["readings_of"]


def readings_of(machine: Machine) -> Readings:
    """Return the readings of ``machine``; see :meth:`Machine.readings`."""
    x86 = machine.kind in (HostKind.APPLE_SILICON_ROSETTA, HostKind.INTEL_MAC)
    names = ("x86_64", "i386") if x86 else ("arm64", "arm")
    hosted = machine.name is not None and machine.name.startswith("github-")
    cpus = _cpu_cores(machine)
    return Readings(
        system="Darwin",
        machine=names[0],
        processor=names[1],
        platform_string=f"macOS-{machine.macos}-{names[0]}-{names[1]}-64bit",
        product_version=machine.macos,
        mac_ver=machine.macos,
        sysctl=_sysctl(machine, cpus),
        metal_device=_metal_device(machine),
        metal_cores=machine.gpu_cores,
        memory_total=machine.ram_bytes,
        memory_available=machine.ram_bytes // 4 * 3,
        swap_total=0,
        swap_used=0,
        environ=_RUNNER if hosted else {},
        logical_cpus=cpus,
        physical_cpus=cpus,
    )


_RUNNER = {"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "github-hosted", "RUNNER_OS": "macOS"}


def _cpu_cores(machine: Machine) -> int | None:
    if machine.cpu_cores is not None:
        return machine.cpu_cores
    chip = machine.chip_facts
    if chip is None or chip.performance_cores is None or chip.efficiency_cores is None:
        return None
    return chip.performance_cores + chip.efficiency_cores


def _brand(machine: Machine) -> str:
    chip = machine.chip
    bare = re.match(r"[AM]\d", chip, re.IGNORECASE) and parse_chip(chip) is not None
    return f"Apple {chip}" if bare else chip


def _sysctl(machine: Machine, cpus: int | None) -> dict[str, str]:
    facts: dict[str, object] = {
        "hw.memsize": machine.ram_bytes,
        "hw.physicalcpu": cpus,
        "hw.logicalcpu": cpus,
        "hw.ncpu": cpus,
        "hw.model": machine.model,
        "kern.osproductversion": machine.macos,
        "machdep.cpu.brand_string": _brand(machine),
        "kern.hv_vmm_present": int(machine.kind is HostKind.MAC_VM),
    }
    if machine.is_apple_silicon:
        facts |= _apple_sysctl(machine)
    return {name: str(value) for name, value in facts.items() if value is not None}


def _apple_sysctl(machine: Machine) -> dict[str, object]:
    chip = machine.chip_facts
    facts: dict[str, object] = {
        "hw.optional.arm64": 1,
        "sysctl.proc_translated": int(machine.kind is HostKind.APPLE_SILICON_ROSETTA),
        "iogpu.wired_limit_mb": 0,
    }
    if chip is not None and chip.performance_cores is not None:
        facts |= {
            "hw.perflevel0.physicalcpu": chip.performance_cores,
            "hw.perflevel0.name": "Performance",
        }
        if chip.efficiency_cores:
            facts |= {
                "hw.perflevel1.physicalcpu": chip.efficiency_cores,
                "hw.perflevel1.name": "Efficiency",
            }
    return facts


def _metal_device(machine: Machine) -> str | None:
    if machine.kind is HostKind.MAC_VM:
        return "Apple Paravirtual device"
    return machine.gpu if machine.kind is HostKind.INTEL_MAC else _brand(machine)
