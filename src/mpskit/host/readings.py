"""``Readings``: what a machine said about itself, before anything is concluded from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, field_validator

from mpskit._base.values import Value

__all__ = ["Readings"]

_MAPPINGS = ("sysctl", "environ", "cgroup", "power")


class Readings(Value):
    """What a machine said about itself; every field is optional.

    A field of the wrong type becomes None, as a reading that failed does, so that making one
    never fails for the sake of a single bad text.

    Attributes:
        system: ``platform.system()``: Darwin, Linux, Windows.
        machine: ``platform.machine()``: arm64, x86_64, AMD64.
        processor: ``platform.processor()``: arm or i386 on a Mac.
        platform_string: ``platform.platform()``, or as ``macOS 15.3.1 (24D70) (arm64)``.
        product_version: the real macOS version, from ``kern.osproductversion`` or ``sw_vers``.
        mac_ver: ``platform.mac_ver()[0]``, which is 10.16 under some Pythons whatever the system.
        sysctl: names and texts; the output of ``sysctl`` as one text is understood too.
        metal_device: the name of the Metal device, if torch was asked.
        metal_cores: how many cores that GPU has, if torch was asked.
        memory_total: bytes of RAM.
        memory_available: bytes that a new program could take without swapping.
        swap_total: bytes of swap space.
        swap_used: bytes of it in use.
        environ: the few variables that tell a hosted runner.
        cpu_brand: the processor's brand on Linux or Windows.
        cgroup: file name to text, the limits of the control groups this process is in.
        affinity: how many CPUs this process may run on.
        logical_cpus: how many CPUs the machine has, hyper-threads counted.
        physical_cpus: how many cores.
        python_version: as ``3.12.4``.
        torch_version: as ``2.13.0``.
        power: name to text, what the system says about battery and Low Power Mode.
    """

    system: str | None = None
    machine: str | None = None
    processor: str | None = None
    platform_string: str | None = None
    product_version: str | None = None
    mac_ver: str | None = None
    sysctl: Mapping[str, str] | None = None
    metal_device: str | None = None
    metal_cores: int | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    swap_total: int | None = None
    swap_used: int | None = None
    environ: Mapping[str, str] | None = None
    cpu_brand: str | None = None
    cgroup: Mapping[str, str] | None = None
    affinity: int | None = None
    logical_cpus: int | None = None
    physical_cpus: int | None = None
    python_version: str | None = None
    torch_version: str | None = None
    power: Mapping[str, str] | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _none_if_wrong(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except (ValidationError, ValueError, TypeError, OverflowError):
            return None

    @field_validator(*_MAPPINGS, mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _lines(value)
        if isinstance(value, Mapping):
            return {str(name): str(text) for name, text in value.items() if text is not None}
        return value

    @field_validator("mac_ver", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """Take version and architecture from the whole of ``platform.mac_ver()``."""
        if isinstance(value, tuple | list) and len(value) == 3 and value[0]:
            return f"{value[0]} ({value[2]})"
        return value


def _lines(text: str) -> dict[str, str]:
    """Split ``name: value`` or ``name=value`` lines; others are left out."""
    found = {}
    for line in text.splitlines():
        ends = [index for index in (line.find(":"), line.find("=")) if index > 0]
        if ends:
            found[line[: min(ends)].strip()] = line[min(ends) + 1 :].strip()
    return found
