"""Reads from the operating system what machine this is, and draws no conclusions.

Each reading has two seconds. One that fails or takes longer is None, without affecting the others.
Nothing here touches the MPS allocator or creates a CUDA context, and torch is never imported: it is
asked for the Metal device's name only if it is already imported.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mpskit.backends import versions
from mpskit.backends.facts import read_metal
from mpskit.system import cgroups
from mpskit.system.process import output_of
from mpskit.system.sysctl import read_sysctls

if TYPE_CHECKING:
    from mpskit.host.readings import Readings

__all__ = [
    "TIME_LIMIT_S",
    "affinity",
    "cpu_brand",
    "physical_cores",
    "read_all",
    "read_readings",
    "replace_readings",
    "replaced_readings",
]

TIME_LIMIT_S = 2.0

_TEXT_SYSCTLS = (
    "hw.model",
    "machdep.cpu.brand_string",
    "machdep.cpu.features",
    "kern.osproductversion",
    "kern.osrelease",
    "kern.version",
    "hw.perflevel0.name",
    "hw.perflevel1.name",
    "hw.perflevel2.name",
)
_NUMBER_SYSCTLS = (
    "hw.memsize",
    "hw.ncpu",
    "hw.physicalcpu",
    "hw.logicalcpu",
    "hw.cputype",
    "hw.optional.arm64",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "hw.perflevel2.physicalcpu",
    "kern.hv_vmm_present",
    "sysctl.proc_translated",
    "iogpu.wired_limit_mb",
)
# None of these names a person or a machine, because a report may end up in a public issue.
_ENVIRON = (
    "CI",
    "GITHUB_ACTIONS",
    "ImageOS",
    "ImageVersion",
    "RUNNER_ARCH",
    "RUNNER_ENVIRONMENT",
    "RUNNER_OS",
)

_replaced: Readings | None = None


def replace_readings(readings: Readings | None) -> Readings | None:
    """Replace every later reading, in all threads; None reads the machine again.

    Returns:
        The previous replacement, to be restored.
    """
    global _replaced
    previous, _replaced = _replaced, readings
    return previous


def replaced_readings() -> Readings | None:
    """Return the readings that replace the machine's own, or None."""
    return _replaced


def read_readings() -> Readings:
    """Read the machine; a reading that fails or takes over two seconds is None."""
    if _replaced is not None:
        return _replaced
    from mpskit.host.readings import Readings

    readers = _READERS | _BY_SYSTEM.get(_quiet(platform.system), _ELSEWHERE)
    values = read_all(readers)
    for name in [name for name in values if name.startswith("*")]:
        values |= values.pop(name) or {}
    return Readings(**values)


def read_all(readers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Read everything; a reading that raises or takes over two seconds is None.

    One thread does them all, because starting one costs more than most readings do. A reading that
    hangs is abandoned with its thread, and another thread takes the rest. If no thread can be
    started, the calling thread reads, without a time limit.
    """
    values: dict[str, Any] = dict.fromkeys(readers)
    names = list(readers)
    while names:
        answers: SimpleQueue[Any] = SimpleQueue()
        todo = [readers[name] for name in names]
        try:
            threading.Thread(target=_answer, args=(todo, answers), daemon=True).start()
        except (RuntimeError, MemoryError):
            _answer(todo, answers)
        while names:
            name = names.pop(0)
            try:
                values[name] = answers.get(timeout=TIME_LIMIT_S)
            except Empty:
                break
    return values


def _answer(todo: list[Callable[[], Any]], answers: SimpleQueue[Any]) -> None:
    for read in todo:
        answers.put(_quiet(read))


def _quiet(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # noqa: BLE001 - an unknown machine may fail in any way
        return None


def _environ() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRON if name in os.environ}


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def affinity() -> int | None:
    """Return how many CPUs this process may run on; None where the system has no such bound."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else None


def _sysctls() -> dict[str, str]:
    return read_sysctls(_TEXT_SYSCTLS, _NUMBER_SYSCTLS)


def _product_version() -> str | None:
    """Ask the kernel, else ``sw_vers`` (the variable makes it tell old SDKs the truth)."""
    if known := _sysctls().get("kern.osproductversion"):
        return known
    environ = os.environ | {"SYSTEM_VERSION_COMPAT": "0"}
    return output_of(("/usr/bin/sw_vers", "-productVersion"), seconds=TIME_LIMIT_S, environ=environ)


def _psutil_memory() -> dict[str, int]:
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "memory_total": memory.total,
        "memory_available": memory.available,
        "swap_total": swap.total,
        "swap_used": swap.used,
    }


def _physical_cpus() -> int | None:
    import psutil

    return psutil.cpu_count(logical=False)


def _linux_memory() -> dict[str, int]:
    """Read ``/proc/meminfo``: psutil gives the same figures after an import of 15 ms."""
    text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    lines = (line.partition(":") for line in text.splitlines())
    kib = {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.split()}
    return {
        "memory_total": kib["MemTotal"],
        "memory_available": kib["MemAvailable"],
        "swap_total": kib["SwapTotal"],
        "swap_used": kib["SwapTotal"] - kib["SwapFree"],
    }


def _linux_cpu() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return {"cpu_brand": cpu_brand(text), "physical_cpus": physical_cores(text)}


def cpu_brand(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of ``/proc/cpuinfo``."""
    for key in ("model name", "Hardware", "cpu model", "Model"):
        if match := re.search(rf"^{key}[ \t]*:[ \t]*(\S.*)$", cpuinfo, re.MULTILINE):
            return match[1].strip()
    return None


def physical_cores(cpuinfo: str) -> int | None:
    """Return how many cores ``/proc/cpuinfo`` lists, hyper-threads not counted."""
    packages = re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    return len(set(zip(packages, cores, strict=False))) or None


# A reader whose name starts with a star gives several fields at once.
_READERS: dict[str, Callable[[], Any]] = {
    "system": platform.system,
    "machine": platform.machine,
    "platform_string": platform.platform,
    "environ": _environ,
    "affinity": affinity,
    "logical_cpus": os.cpu_count,
    "python_version": _python_version,
    "torch_version": versions.torch_version,
}
_ELSEWHERE: dict[str, Callable[[], Any]] = {
    "processor": platform.processor,
    "cpu_brand": platform.processor,
    "*memory": _psutil_memory,
    "physical_cpus": _physical_cpus,
}
_BY_SYSTEM: dict[str, dict[str, Callable[[], Any]]] = {
    # platform.processor() would start `uname -p`, which says nothing new on Linux.
    "Linux": {"*memory": _linux_memory, "*cpu": _linux_cpu, "cgroup": cgroups.read_limits},
    "Darwin": {
        "processor": platform.processor,
        "product_version": _product_version,
        "mac_ver": lambda: platform.mac_ver()[0],
        "sysctl": _sysctls,
        "*metal": read_metal,
        "*memory": _psutil_memory,
    },
}
