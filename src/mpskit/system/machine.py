"""The impure file: asks the operating system what machine this is, and concludes nothing.

Each reading has two seconds. One that fails or takes longer is None, and the others still come.
Nothing here touches the MPS allocator or makes a CUDA context, and torch is never imported: its
name for the Metal device is asked only if torch is already there.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from mpskit.backends import versions
from mpskit.host import linux
from mpskit.host.readings import Readings

__all__ = ["TIME_LIMIT_S", "read_power", "read_readings", "replace_readings", "replaced_readings"]

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
# Nothing that names a person or a machine: the report may end in a public issue.
_ENVIRON = (
    "CI",
    "GITHUB_ACTIONS",
    "ImageOS",
    "ImageVersion",
    "RUNNER_ARCH",
    "RUNNER_ENVIRONMENT",
    "RUNNER_OS",
)
_CGROUP_FILES = (
    "cpu.max",
    "memory.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "memory.limit_in_bytes",
)
_POWER_COMMANDS = {"batt": ("pmset", "-g", "batt"), "live": ("pmset", "-g", "live")}

_replaced: Readings | None = None


def replace_readings(readings: Readings | None) -> Readings | None:
    """Make every later reading, in all threads, this one; None asks the machine again.

    Returns:
        What was in place before, to be put back.
    """
    global _replaced
    previous, _replaced = _replaced, readings
    return previous


def replaced_readings() -> Readings | None:
    """Return the readings put in place of the machine's own, or None."""
    return _replaced


def read_readings() -> Readings:
    """Ask the machine; a reading that fails or takes over two seconds is None."""
    if _replaced is not None:
        return _replaced
    readers = _READERS | _BY_SYSTEM.get(platform.system(), _ELSEWHERE)
    values = _bounded(readers)
    for name in [name for name in values if name.startswith("*")]:
        values |= values.pop(name) or {}
    return Readings(**values)


def read_power() -> Mapping[str, str] | None:
    """Return what the system says about battery and Low Power Mode; None where it says nothing.

    Kept out of :func:`read_readings` because on a Mac it starts two programs (``pmset -g batt``
    and ``pmset -g live``: the keys are ``batt`` and ``live``). On Linux the keys are the files of
    ``/sys/class/power_supply``: ``BAT0/status``, ``AC/online``.
    """
    if _replaced is not None:
        return _replaced.power
    if platform.system() == "Darwin":
        texts = _bounded({name: partial(_run, words) for name, words in _POWER_COMMANDS.items()})
        return {name: text for name, text in texts.items() if text} or None
    return _bounded({"power": _linux_power})["power"] or None


def _bounded(readers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Read everything; a reading that raises or takes too long is None.

    One thread does them all, because starting one costs more than most readings do. A reading
    that hangs is left alone with its thread, and another thread takes the rest.
    """
    values: dict[str, Any] = dict.fromkeys(readers)
    names = list(readers)
    while names:
        answers: SimpleQueue[Any] = SimpleQueue()
        todo = [readers[name] for name in names]
        threading.Thread(target=_answer, args=(todo, answers), daemon=True).start()
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
    except Exception:  # noqa: BLE001 - a machine nobody has seen may fail in any way
        return None


def _run(words: tuple[str, ...]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=True)
    return done.stdout.strip()


def _environ() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRON if name in os.environ}


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _affinity() -> int | None:
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else None


def _sysctls() -> dict[str, str]:
    """Ask the kernel directly: no process is started, and 21 names take microseconds."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name in (*_TEXT_SYSCTLS, *_NUMBER_SYSCTLS):
        raw = _sysctl(library, name)
        if raw is not None and name in _TEXT_SYSCTLS:
            found[name] = raw.split(b"\0")[0].decode("utf-8", "replace").strip()
        elif raw:
            found[name] = str(int.from_bytes(raw, sys.byteorder))
    return found


def _sysctl(library: Any, name: str) -> bytes | None:
    """Return the raw value of one name, None if the kernel does not know it."""
    import ctypes

    size = ctypes.c_size_t(0)
    if library.sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    buffer = ctypes.create_string_buffer(size.value)
    failed = library.sysctlbyname(
        name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return None if failed else buffer.raw[: size.value]


def _product_version() -> str:
    """Ask the kernel, and else ``sw_vers`` (the variable makes it tell the truth to old SDKs)."""
    if known := _sysctls().get("kern.osproductversion"):
        return known
    environ = os.environ | {"SYSTEM_VERSION_COMPAT": "0"}
    done = subprocess.run(
        ("sw_vers", "-productVersion"),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=True,
        env=environ,
    )
    return done.stdout.strip()


def _metal() -> dict[str, Any]:
    """Ask torch for the GPU's name, if torch is there and built for MPS (2.9 and later)."""
    torch = sys.modules.get("torch")
    if torch is None or not versions.has("mps.get_name", str(torch.__version__)):
        return {}
    if not torch.backends.mps.is_available():
        return {}
    mps = torch.backends.mps
    return {"metal_device": mps.get_name(), "metal_cores": mps.get_core_count()}


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
    return {"cpu_brand": linux.cpu_brand(text), "physical_cpus": linux.physical_cores(text)}


def _cgroup() -> dict[str, str]:
    """Read the limits of this process's control groups and of all their parents."""
    found = {}
    for folder in linux.cgroup_folders(_read("/proc/self/cgroup") or ""):
        for name in _CGROUP_FILES:
            text = _read(f"/sys/fs/cgroup/{folder}/{name}")
            if text is not None:
                found[f"{folder}/{name}".lstrip("/")] = text.strip()
    return found


def _linux_power() -> dict[str, str]:
    root = Path("/sys/class/power_supply")
    files = [
        path for supply in sorted(root.glob("*")) for path in (supply / "status", supply / "online")
    ]
    texts = {str(path.relative_to(root)): _read(str(path)) for path in files}
    return {name: text.strip() for name, text in texts.items() if text is not None}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


# A reader whose name starts with a star gives several fields at once.
_READERS: dict[str, Callable[[], Any]] = {
    "system": platform.system,
    "machine": platform.machine,
    "platform_string": platform.platform,
    "environ": _environ,
    "affinity": _affinity,
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
    "Linux": {"*memory": _linux_memory, "*cpu": _linux_cpu, "cgroup": _cgroup},
    "Darwin": {
        "processor": platform.processor,
        "product_version": _product_version,
        "mac_ver": lambda: platform.mac_ver()[0],
        "sysctl": _sysctls,
        "*metal": _metal,
        "*memory": _psutil_memory,
    },
}
