"""How much memory a job may use: on this machine's device, or on another Mac.

A Mac's GPU shares the machine's memory, so memory that Metal allows is not usable while other
programs hold it. The usable amount is the smaller of what is allowed and what is available, less a
reserve.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mpskit._base.arguments import wrong_type
from mpskit._base.sizes import GIB, MIB, format_bytes
from mpskit._base.values import Value
from mpskit.backends.kinds import MemoryClass, kind_of
from mpskit.backends.versions import NEWEST, OLDEST, minimum_macos, too_old_for_mps, torch_version
from mpskit.errors import ArgumentError, UnknownMachineError
from mpskit.host.kinds import DEFAULT_MACOS, HostKind, device_there, mac_device
from mpskit.memory.amounts import Amount, amount_bytes
from mpskit.memory.working_set import (
    Confidence,
    WorkingSet,
    limit_bytes,
    recommended_bytes,
    rule_of,
)
from mpskit.system.process import MemoryUser, largest_users

if TYPE_CHECKING:
    from mpskit.backends.memory import Backend, DeviceLike
    from mpskit.host import Host
    from mpskit.host.named import MachineLike

__all__ = [
    "MemoryBudget",
    "MemoryUser",
    "machine_budget",
    "memory_budget",
    "memory_budget_for",
    "usable_bytes",
]

_ROWS = {
    "total": "total_bytes",
    "recommended": "recommended_bytes",
    "hard limit": "limit_bytes",
    "largest buffer": "max_buffer_bytes",
    "allocated now": "allocated_bytes",
    "held by driver": "reserved_bytes",
    "free on device": "free_bytes",
    "available RAM": "available_bytes",
    "swap in use": "swap_used_bytes",
    "wired override": "wired_limit_bytes",
    "reserve": "reserve_bytes",
    "usable": "usable_bytes",
}


class MemoryBudget(Value):
    """What a job may use of a device's memory; sizes in bytes, None where unknown.

    Attributes:
        device: the device, as ``mps`` or ``cuda:0``.
        machine: a description of the machine.
        total_bytes: the memory the device has: the machine's RAM (less if a container is limited)
            for the CPU and Apple GPUs, its own for others.
        recommended_bytes: how much of it may be used at best.
        recommended_source: where that comes from: ``live`` (torch asked Metal), ``table`` (the
            working-set rule), ``vram``, ``cgroup`` or ``ram``.
        limit_bytes: the backend's hard limit, beyond which it raises its out-of-memory error.
        max_buffer_bytes: the largest single buffer, so the largest tensor.
        allocated_bytes: what live tensors hold now in this process.
        reserved_bytes: what the backend holds for this process now, caches included.
        free_bytes: what is free on a device with memory of its own.
        available_bytes: RAM that can be had without swapping.
        swap_total_bytes: the machine's swap.
        swap_used_bytes: how much of it is in use.
        wired_limit_bytes: the override ``sysctl iogpu.wired_limit_mb``; None if it is not set.
        users: the other programs that hold the most of the machine's memory.
        reserve_bytes: what is left free.
        usable_bytes: what this process may take on top of what it holds.
        confidence: how sure ``recommended_bytes`` is.
        notes: remarks for a person.
    """

    device: str
    machine: str | None = None
    total_bytes: int | None = None
    recommended_bytes: int | None = None
    recommended_source: Literal["live", "table", "vram", "cgroup", "ram"] | None = None
    limit_bytes: int | None = None
    max_buffer_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    free_bytes: int | None = None
    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    wired_limit_bytes: int | None = None
    users: tuple[MemoryUser, ...] = ()
    reserve_bytes: int = 0
    usable_bytes: int | None = None
    confidence: Confidence = "low"
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        title = f"Memory budget of {self.device}" + (f" on {self.machine}" if self.machine else "")
        rows = [(label, getattr(self, field)) for label, field in _ROWS.items()]
        lines = [
            f"  {label:<16}{format_bytes(size):>12}" for label, size in rows if size is not None
        ]
        source = (
            [f"  source: {self.recommended_source}, {self.confidence} confidence"]
            if self.recommended_source
            else []
        )
        users = [f"  others: {', '.join(map(str, self.users))}"] if self.users else []
        return "\n".join([title, *lines, *source, *users, *(f"  note: {n}" for n in self.notes)])


def memory_budget_for(
    ram_bytes: int,
    macos: str = DEFAULT_MACOS,
    chip: str | None = None,
    *,
    vram_bytes: int | None = None,
    wired_limit_bytes: int | None = None,
    reserve: Amount | None = None,
) -> MemoryBudget:
    """Return another Mac's budget, by the working-set rule.

    ``recommended_bytes`` and ``limit_bytes`` are exact to the byte where the confidence is high.
    ``usable_bytes`` ignores other programs. Torch is not imported.

    Args:
        ram_bytes: the machine's memory in bytes.
        macos: its version, ``"15.6"`` or ``"26"``.
        chip: its chip, ``"M3 Max"``; an Intel one without ``vram_bytes`` has the CPU's budget.
        vram_bytes: the memory of an Intel Mac's AMD GPU.
        wired_limit_bytes: the machine's ``iogpu.wired_limit_mb``, in bytes.
        reserve: as for :func:`memory_budget`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: a size is not positive, or ``macos`` is not a version.
    """
    if not isinstance(chip, str | None):
        raise wrong_type("chip", "a str such as 'M3 Max'", chip)
    intel = chip is not None and chip.casefold().startswith("intel")
    working_set = recommended_bytes(
        ram_bytes, macos, wired_limit_bytes=wired_limit_bytes, vram_bytes=vram_bytes
    )
    kind = HostKind.INTEL_MAC if intel else HostKind.APPLE_SILICON
    on_cpu = mac_device(kind, macos, vram_bytes) == "cpu"
    vram_bytes = None if on_cpu else vram_bytes
    known = _of_ram(ram_bytes, None) if on_cpu else _of_working_set(working_set, "table")
    budget = MemoryBudget.model_construct(
        device="cpu" if on_cpu else "mps",
        machine=_described(chip, ram_bytes, macos),
        wired_limit_bytes=None if on_cpu else wired_limit_bytes or None,
        notes=(*_elsewhere(chip or ""), *_of_system(macos)),
        **{"total_bytes": vram_bytes or ram_bytes, **known},
    )
    return _settled(budget, reserve)


def machine_budget(
    machine: MachineLike,
    macos: str | None = None,
    *,
    device: str | None = None,
    reserve: Amount | None = None,
) -> MemoryBudget:
    """Return the budget of a machine that is named or described, as if it ran nothing else.

    Args:
        machine: a name (a profile's, a CUDA card's), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`.
        macos: another macOS version than the machine's.
        device: ``cpu`` instead of the machine's GPU.
        reserve: as for :func:`memory_budget`.

    Raises:
        UnknownMachineError: no machine has that name.
        ArgumentTypeError: ``machine`` is none of these.
        ArgumentError: ``macos`` is not a version, the machine is not known to have that device,
            nothing is known of its memory, or the reserve cannot be understood.
    """
    mac = _mac_facts(machine)
    if mac is not None:
        return _mac_budget(mac if macos is None else mac._replace(macos=macos), device, reserve)
    from mpskit.host.named import as_host, host_device

    host = as_host(machine)
    if macos is not None:
        raise ArgumentError(f"macos= is for a Mac, not for {host.summary}", given=macos)
    if host_device(host, device) != "cpu":
        return _card_budget(host, reserve)
    return _ram_budget(host.summary, host.memory_total_bytes, host.memory_limit_bytes, (), reserve)


class _Mac(NamedTuple):
    """What the budget of another Mac follows from."""

    ram: int | None
    macos: str
    kind: HostKind
    chip: str | None
    vram: int | None
    wired: int | None


def _mac_facts(machine: MachineLike) -> _Mac | None:
    """Return the facts of a Mac; None for another machine. A profile's need no Host, which is slow.

    Raises:
        UnknownMachineError: no machine has that name.
        ArgumentTypeError: it is no machine.
    """
    from mpskit.host.machines import Machine, find_machine

    found: Machine | None = None
    if isinstance(machine, str | Machine):
        with contextlib.suppress(UnknownMachineError):  # it may be a CUDA card
            found = find_machine(machine)
    if found is not None:
        facts = (found.ram_bytes, found.macos, found.kind, found.chip, found.vram_bytes, None)
        return _Mac(*facts)
    from mpskit.host.named import as_host

    host = as_host(machine)
    if not host.is_mac:
        return None
    chip = host.chip.name if host.chip and not host.is_vm else host.cpu_name
    version, wired = host.os_version or DEFAULT_MACOS, host.wired_limit_bytes
    return _Mac(host.memory_total_bytes, version, host.kind, chip, host.gpu_memory_bytes, wired)


def _mac_budget(mac: _Mac, device: str | None, reserve: Amount | None) -> MemoryBudget:
    name = _described(mac.chip, mac.ram, mac.macos)
    if device_there(mac_device(mac.kind, mac.macos, mac.vram), device, name) != "cpu":
        return memory_budget_for(
            _known_ram(mac.ram, name),
            mac.macos,
            mac.chip,
            vram_bytes=mac.vram,
            wired_limit_bytes=mac.wired,
            reserve=reserve,
        )
    rosetta = [_ROSETTA] if mac.kind is HostKind.APPLE_SILICON_ROSETTA else []
    notes = (*_elsewhere(mac.chip or ""), *rosetta, *_of_system(mac.macos))
    return _ram_budget(name, mac.ram, None, notes, reserve)


def _ram_budget(
    name: str,
    ram: int | None,
    container: int | None,
    notes: tuple[str, ...],
    reserve: Amount | None,
) -> MemoryBudget:
    known = _of_ram(_known_ram(ram, name), container)
    budget = MemoryBudget.model_construct(device="cpu", machine=name, notes=notes, **known)
    return _settled(budget, reserve)


def _known_ram(ram: int | None, name: str) -> int:
    if ram is None:
        raise ArgumentError(f"nothing is known of the RAM of {name}", given=name)
    return ram


def _described(chip: str | None, ram: int | None, macos: str) -> str:
    size = format_bytes(ram) if ram else None
    return ", ".join(filter(None, [chip, size, f"macOS {macos.strip()}"]))


def _card_budget(host: Host, reserve: Amount | None) -> MemoryBudget:
    """Return a CUDA card's budget: what is left of it once the process has its context."""
    total = host.gpu_memory_bytes or 0
    budget = MemoryBudget(
        device="cuda",
        machine=host.summary,
        total_bytes=total,
        recommended_bytes=total,
        recommended_source="table",
        limit_bytes=total,
        free_bytes=total - _CUDA_CONTEXT,
        confidence="medium",
        notes=tuple(_elsewhere("")),
    )
    return _settled(budget, reserve)


_ROSETTA = "Python runs under Rosetta there, where torch has no MPS; an arm64 Python has it"
# What a process takes of a card besides its tensors, from CUDA 11.7 on (pytorch#107667).
_CUDA_CONTEXT = 300 * MIB


def _of_system(macos: str) -> list[str]:
    """Return the remarks about MPS on a macOS version."""
    if too_old_for_mps(macos, OLDEST):
        floor = minimum_macos(OLDEST)
        return [f"torch has MPS from macOS {floor} on; macOS {macos.strip()} has only the CPU"]
    # Finding the installed torch takes milliseconds, so it is done for an old macOS only.
    torch = torch_version() if too_old_for_mps(macos, NEWEST) else None
    if torch is None or not too_old_for_mps(macos, torch):
        return []
    floor = minimum_macos(torch)
    return [f"torch {torch} needs macOS {floor} for MPS: install an older torch there"]


def memory_budget(
    device: DeviceLike | None = None,
    *,
    machine: MachineLike | None = None,
    reserve: Amount | None = None,
    live: bool = True,
) -> MemoryBudget:
    """Return what a job may use of a device: now on this machine, or on another one.

    Args:
        device: the device; None takes the one that :func:`mpskit.get_optimal_device` chooses, or
            the other machine's own.
        machine: another machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`. Its budget follows from rules, as if it ran nothing else, and
            no device is asked.
        reserve: what to leave free: bytes (``int``), ``"2GiB"``, or a share of the device's
            memory (``"10%"``, ``0.1``). None takes 5%, at least 512 MiB and at most 4 GiB.
        live: ask the backend, which is a first use of it: MPS reads and freezes the watermark
            variables, CUDA creates its context. With False only a backend in use is asked, and the
            working-set rule replaces Metal's figures.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        UnknownMachineError: no machine has that name.
        ArgumentError: the device or the reserve cannot be understood, or the other machine is not
            known to have the device.
    """
    if machine is not None:
        asked = None if device is None else _type_of(device)
        return machine_budget(machine, device=asked, reserve=reserve)
    return _budget(device, reserve, live=live, users=largest_users())


def _type_of(device: DeviceLike) -> str:
    from mpskit.backends.memory import as_device

    return as_device(device).type


def usable_bytes(device: DeviceLike, *, live: bool = True) -> int | None:
    """Return `memory_budget`'s ``usable_bytes``, without a look at every process of the machine."""
    return _budget(device, None, live=live, users=()).usable_bytes


def _budget(
    device: DeviceLike | None,
    reserve: Amount | None,
    *,
    live: bool,
    users: tuple[MemoryUser, ...],
) -> MemoryBudget:
    from mpskit.backends.memory import as_device, backend
    from mpskit.device import get_optimal_device
    from mpskit.host import detect_host
    from mpskit.system.memory import system_memory

    chosen = as_device(device) if device is not None else get_optimal_device().device
    host, ram = detect_host(), system_memory()
    asked = backend(chosen)
    ask = live or asked.is_initialized() is True
    known = _RULES[asked.kind.memory](asked, host, ask)
    budget = MemoryBudget(
        device=str(chosen),
        machine=host.summary,
        available_bytes=ram.available,
        swap_total_bytes=ram.swap_total,
        swap_used_bytes=ram.swap_used,
        users=users,
        **known,
    )
    shared = asked.kind.memory is not MemoryClass.OWN or (ask and asked.shares_ram())
    return _settled(budget, reserve, available=ram.available if shared else None)


def _elsewhere(chip: str) -> list[str]:
    said = {
        "assumes that no other program holds memory there": True,
        "torch 2.2 is the last that runs on an Intel Mac": chip.casefold().startswith("intel"),
        "a virtual Mac often cannot allocate on MPS at all": "virtual" in chip.casefold(),
    }
    return [text for text, holds in said.items() if holds]


# What a rule returns: some of MemoryBudget's fields.
_Known: TypeAlias = dict[str, Any]


def _cpu(_asked: Backend, host: Host, _ask: bool) -> _Known:
    return _of_ram(host.memory_total_bytes, host.memory_limit_bytes)


def _of_ram(ram: int | None, container: int | None) -> _Known:
    whole = container or ram
    source = "cgroup" if container else "ram"
    return {
        "total_bytes": whole,
        "recommended_bytes": whole,
        "recommended_source": source if whole else None,
        "confidence": "high" if whole else "low",
    }


def _mps(asked: Backend, host: Host, ask: bool) -> _Known:
    """Return Metal's own figures, or the working-set rule's where it is not asked."""
    rule = rule_of(host)
    known = _of_working_set(rule, "table") if rule else {}
    if ask:
        known |= _present(asked) | _metal(asked)
    return {
        **known,
        "total_bytes": host.memory_total_bytes,
        "wired_limit_bytes": host.wired_limit_bytes,
    }


def _of_working_set(found: WorkingSet, source: str) -> _Known:
    return {
        "recommended_bytes": found.recommended_bytes,
        "recommended_source": source,
        "limit_bytes": found.limit_bytes,
        "max_buffer_bytes": found.max_buffer_bytes,
        "confidence": found.confidence,
    }


def _metal(asked: Backend) -> _Known:
    from mpskit.memory.limit import high_watermark

    size, buffer = asked.recommended_bytes(), asked.max_buffer_bytes()
    known: _Known = {} if buffer is None else {"max_buffer_bytes": buffer}
    if size is None:
        return known
    ratio = high_watermark()
    limit = limit_bytes(size, ratio) if ratio else None
    known |= {"recommended_bytes": size, "recommended_source": "live", "confidence": "high"}
    return known | {"limit_bytes": limit}


def _own_memory(asked: Backend, _host: Host, ask: bool) -> _Known:
    """Return the figures of a device with its own memory: CUDA, XPU and plug-ins."""
    device = asked.device
    if not ask:
        return {"notes": (f"{device} was not queried, because that would be its first use",)}
    total = asked.total_bytes()
    if total is None:
        return {"notes": (f"{device} does not report its memory",)}
    notes = {
        f"{device} is {asked.name()}, used through {asked.label}": asked.name() is not None,
        f"{device} is an integrated GPU: its memory is the machine's": asked.shares_ram(),
    }
    return {
        **_present(asked),
        "notes": tuple(text for text, holds in notes.items() if holds),
        "total_bytes": total,
        "recommended_bytes": total,
        "recommended_source": "vram",
        "confidence": "high",
        "limit_bytes": int(total * (asked.memory_fraction() or 1.0)),
        "free_bytes": asked.free_bytes(),
    }


def _present(asked: Backend) -> _Known:
    return {"allocated_bytes": asked.allocated_bytes(), "reserved_bytes": asked.reserved_bytes()}


_RULES: dict[MemoryClass, Callable[[Backend, Host, bool], _Known]] = {
    MemoryClass.HOST: _cpu,
    MemoryClass.UNIFIED: _mps,
    MemoryClass.OWN: _own_memory,
}


def _settled(
    budget: MemoryBudget, reserve: Amount | None, *, available: int | None = None
) -> MemoryBudget:
    """Complete a budget with its reserve, what is usable, and the notes.

    ``available`` is the RAM that can be had, for a device whose memory is the machine's.
    """
    whole = budget.total_bytes or 0
    kept = _default_reserve(whole) if reserve is None else amount_bytes(reserve, whole, "reserve")
    settled = {"reserve_bytes": kept, "usable_bytes": _usable(budget, kept, available)}
    budget = budget.model_copy(update=settled)
    return budget.model_copy(update={"notes": (*budget.notes, *_notes(budget))})


def _default_reserve(whole: int) -> int:
    return min(max(whole // 20, 512 * MIB), 4 * GIB)


def _usable(budget: MemoryBudget, reserve: int, available: int | None) -> int | None:
    """Return the smallest of what the backend, the device and the machine still have."""
    ceiling = _least(budget.recommended_bytes, budget.limit_bytes)
    if ceiling is None:
        return None
    room = ceiling - (budget.reserved_bytes or 0)
    least = _least(room, budget.free_bytes, available)
    return None if least is None else max(0, least - reserve)


def _least(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def _notes(budget: MemoryBudget) -> list[str]:
    """Return the remarks about a budget; pure."""
    total, limit = budget.total_bytes or 0, budget.limit_bytes
    metal = kind_of(budget.device).memory is MemoryClass.UNIFIED
    said = {
        "PyTorch's own limit is above the physical memory, so a job swaps before it fails; "
        "limit_memory() sets a lower one": limit is not None and limit > total,
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO is 0: PyTorch has no limit here": limit is None
        and budget.recommended_source == "live",
        "other programs hold memory that Metal would allow": metal
        and (budget.available_bytes or total) < (budget.recommended_bytes or 0),
        "the machine already swaps": (budget.swap_used_bytes or 0) > total // 10 > 0,
        "iogpu.wired_limit_mb overrides Metal's own figure": budget.wired_limit_bytes is not None,
        "Metal does not say how much memory it recommends here": metal
        and budget.recommended_bytes is None,
        "nothing is left besides the reserve": budget.usable_bytes == 0 < budget.reserve_bytes,
    }
    return [text for text, holds in said.items() if holds]
