"""What machine this is: the record of readings, the pure rules over it, chips and profiles.

>>> from mpskit.host import Host, Readings
>>> Host.from_readings(Readings(system="Darwin", machine="x86_64", processor="i386",
...                             sysctl={"machdep.cpu.brand_string": "Apple M2 Pro"})).kind
<HostKind.APPLE_SILICON_ROSETTA: 'apple-silicon-rosetta'>
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.lazy import resolver

if TYPE_CHECKING:
    from mpskit.host.chips import Chip
    from mpskit.host.host import Host, detect_host
    from mpskit.host.kinds import HostKind
    from mpskit.host.machines import Machine, find_machine, machine_names
    from mpskit.host.readings import Readings

# Choosing a device does not pay for the machine profiles, nor planning for the readings.
_PUBLIC = {
    "Chip": "mpskit.host.chips",
    "Host": "mpskit.host.host",
    "HostKind": "mpskit.host.kinds",
    "Machine": "mpskit.host.machines",
    "Readings": "mpskit.host.readings",
    "detect_host": "mpskit.host.host",
    "find_machine": "mpskit.host.machines",
    "machine_names": "mpskit.host.machines",
}

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

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _PUBLIC)
