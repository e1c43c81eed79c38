"""Which device a process would get, guessed without importing torch (a second or more).

For a line that nobody should wait for, such as a test run's header. It rests on the package
metadata and on device files, so it says "expected" and never decides anything. The rules are those
of :func:`mpskit.get_optimal_device`; only what torch would say is guessed.
"""

from __future__ import annotations

from mpskit.backends.facts import Found, TorchFacts
from mpskit.backends.kinds import KINDS, ROCM, Kind, StatusRule
from mpskit.backends.versions import NEWEST, torch_version
from mpskit.device.policy import Request, decide, favours_its_cpu
from mpskit.device.status import backend_statuses
from mpskit.host import Host, HostKind, detect_host
from mpskit.settings import read_settings
from mpskit.system.gpu import card_count

__all__ = ["expected_device"]


def expected_device() -> str:
    """Return the likely device as torch would write it.

    Raises:
        SettingsError: a variable has a wrong value.
        DeviceUnavailableError: ``LOCAL_RANK`` is beyond the number of CUDA devices.
    """
    settings, host = read_settings(), detect_host()
    facts = _guess(host, torch_version() or NEWEST)
    statuses = backend_statuses(host, facts, disable_mps=settings.disable_mps)
    request = Request(
        device=settings.device, env_policy=settings.policy, local_rank=settings.local_rank
    )
    return decide(request, statuses, apple_silicon=favours_its_cpu(host)).device


def _guess(host: Host, version: str) -> TorchFacts:
    """A wheel says in its local version what it was built for: ``+cu128``, ``+xpu``, ``+cpu``."""
    local = version.partition("+")[2]
    kinds = [*KINDS.values(), ROCM]
    built = next((kind for kind in kinds if kind.build and local.startswith(kind.build)), None)
    if built is None and local != "cpu":
        built = KINDS[ROCM.name]  # PyPI's wheels for Linux are CUDA's and do not say so
    found = [_cards(host, built)] if built else []
    if host.kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM):
        metal = (kind for kind in kinds if kind.status is StatusRule.METAL)
        found = [Found(kind, built=True, count=1) for kind in metal]
    return TorchFacts(version, {one.kind.name: one for one in found})


def _cards(host: Host, kind: Kind) -> Found:
    count = card_count(kind.vendor) if kind.vendor and host.kind is HostKind.LINUX else 0
    return Found(kind, built=count > 0, count=count)
