"""Puts one simulation together: machine, memory and rules for the installed torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from packaging.version import Version

from mpskit.backends.versions import has, minimum_macos
from mpskit.errors import SettingsError
from mpskit.host import HostKind, Machine
from mpskit.memory.working_set import recommended_bytes
from mpskit.simulation.autocast import Autocast
from mpskit.simulation.core import RngMode, Simulation
from mpskit.simulation.coverage import Coverage
from mpskit.simulation.memory import Memory
from mpskit.simulation.rng import Randomness
from mpskit.simulation.rules import Rules
from mpskit.simulation.tags import Tags

__all__ = ["build"]

_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


def build(machine: Machine, *, rng: RngMode, fallback: bool | None) -> Simulation:
    """Return a simulation of ``machine`` that is not switched on yet.

    Raises:
        SettingsError: PYTORCH_ENABLE_MPS_FALLBACK is not a number; a Mac's torch does not even
            import then.
    """
    version = str(torch.__version__)
    fallback = reads_fallback(os.environ) if fallback is None else fallback
    coverage = Coverage(version, machine.macos, fallback=fallback)
    memory = _memory(machine, version)
    tags = Tags(memory)
    return Simulation(
        machine=machine,
        torch_version=version,
        usable=_usable(machine, version),
        pins=has("mps.pinned_cpu_tensors", version),
        memory=memory,
        tags=tags,
        rules=Rules(coverage, version, machine.macos, fallback=fallback),
        randomness=Randomness(rng),
        autocast=Autocast(tags),
    )


def reads_fallback(environ: Mapping[str, str]) -> bool:
    """Return whether missing operators fall back, by the variable as torch reads it (``stoi``).

    Raises:
        SettingsError: it does not begin with a number.
    """
    text = environ.get(_FALLBACK)
    if text is None:
        return False
    number = re.match(r"\s*[+-]?\d+", text, re.ASCII)
    if number is None:
        raise SettingsError(f"{_FALLBACK}={text!r} is not a number: use 1 or 0", given=text)
    return int(number[0]) != 0


def _usable(machine: Machine, torch_version: str) -> bool:
    silicon = machine.kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM)
    return silicon and Version(machine.macos) >= Version(minimum_macos(torch_version))


def _memory(machine: Machine, torch_version: str) -> Memory:
    size = recommended_bytes(machine.ram_bytes, machine.macos)
    refusal = None
    if not _usable(machine, torch_version):
        refusal = (
            f"The MPS backend is supported on MacOS {minimum_macos(torch_version)}+."
            "Current OS version can be queried using `sw_vers`"
        )
    return Memory(
        torch_version,
        recommended_bytes=size.recommended_bytes,
        max_buffer_bytes=size.max_buffer_bytes,
        broken=machine.kind is HostKind.MAC_VM,
        refusal=refusal,
    )
