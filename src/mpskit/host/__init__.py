"""What machine this is: the record of readings, the pure rules over it, chips and profiles.

>>> from mpskit.host import Host, Readings
>>> Host.from_readings(Readings(system="Darwin", machine="x86_64", processor="i386",
...                             sysctl={"machdep.cpu.brand_string": "Apple M2 Pro"})).kind
<HostKind.APPLE_SILICON_ROSETTA: 'apple-silicon-rosetta'>
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpskit.host.chips import Chip
from mpskit.host.host import Host, HostKind, detect_host
from mpskit.host.readings import Readings

if TYPE_CHECKING:
    from mpskit.host.machines import Machine, find_machine, machine_names

__all__ = [
    "Chip",
    "Host",
    "HostKind",
    "Machine",
    "Readings",
    "detect_host",
    "find_machine",
    "machine_names",
]


def __getattr__(name: str) -> Any:
    # Machines are for planning and simulation; choosing a device need not import them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpskit.host import machines

    return getattr(machines, name)
