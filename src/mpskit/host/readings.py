"""``Readings``: the raw answers of a machine about itself, before any rule is applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, field_validator

from mpskit._base.values import Value

__all__ = ["Readings"]

_MAPPINGS = ("sysctl", "environ", "cgroup", "power")


class Readings(Value):
    """The raw answers of a machine about itself; every field is optional.

    A value of the wrong type becomes None, like a reading that failed, so one malformed answer
    does not lose the others.

    Attributes:
        system: ``platform.system()``: Darwin, Linux, Windows.
        machine: ``platform.machine()``: arm64, x86_64, AMD64.
        processor: ``platform.processor()``: arm or i386 on a Mac.
        platform_string: ``platform.platform()``, or a text like ``macOS 15.3.1 (24D70) (arm64)``.
        product_version: the real macOS version, from ``kern.osproductversion`` or ``sw_vers``.
        mac_ver: ``platform.mac_ver()[0]``, which some Python builds give as 10.16 on any macOS.
        sysctl: names and values; the output of the ``sysctl`` command is parsed too.
        metal_device: the name of the Metal device, if torch was asked.
        metal_cores: the GPU's number of cores, if torch was asked.
        memory_total: bytes of RAM.
        memory_available: bytes that a new process could take without swapping.
        swap_total: bytes of swap space.
        swap_used: bytes of swap in use.
        environ: the environment variables that tell a hosted CI runner.
        cpu_brand: the processor's brand on Linux or Windows.
        cgroup: file name to text, for the limits of the control groups of this process.
        affinity: how many CPUs this process may run on.
        logical_cpus: how many CPUs the machine has, hyper-threads included.
        physical_cpus: how many cores the machine has.
        python_version: such as ``3.12.4``.
        torch_version: such as ``2.13.0``.
        power: name to text, for what the system reports about battery and Low Power Mode.
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
    """Split ``name: value`` and ``name=value`` lines; other lines are ignored."""
    found = {}
    for line in text.splitlines():
        ends = [index for index in (line.find(":"), line.find("=")) if index > 0]
        if ends:
            found[line[: min(ends)].strip()] = line[min(ends) + 1 :].strip()
    return found
