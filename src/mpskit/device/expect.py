"""Which device a process would get, guessed without importing torch (a second or more).

For a line that nobody should wait for, such as a test run's header. It rests on the package
metadata and on device files, so it says "expected" and never decides anything.
"""

from __future__ import annotations

from pathlib import Path

from mpskit.backends.facts import TorchFacts
from mpskit.backends.versions import torch_version
from mpskit.device.policy import Request, decide
from mpskit.device.status import cpu_status, cuda_status, mps_status
from mpskit.host import Host, HostKind, detect_host
from mpskit.settings import read_settings

__all__ = ["expected_device"]


def expected_device() -> str:
    """Return the likely device as torch would write it.

    Raises:
        SettingsError: a variable has a wrong value.
        DeviceUnavailableError: ``LOCAL_RANK`` is beyond the number of CUDA devices.
    """
    settings, host = read_settings(), detect_host()
    facts = _guess(host, torch_version() or "2.13")
    mps = mps_status(host, facts, disabled=settings.disable_mps)
    request = Request(
        device=settings.device, env_policy=settings.policy, local_rank=settings.local_rank
    )
    silicon = host.kind is HostKind.APPLE_SILICON
    return decide(request, [cuda_status(facts), mps, cpu_status()], apple_silicon=silicon).device


def _guess(host: Host, version: str) -> TorchFacts:
    # CPU builds say so in their version; each NVIDIA card has a numbered device file.
    cards = 0 if "+cpu" in version else len(list(Path("/dev").glob("nvidia[0-9]*")))
    native = host.kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM)
    return TorchFacts(
        version=version,
        mps_built=native,
        mps_available=native,
        cuda_built="unknown" if cards else None,
        cuda_count=cards,
    )
