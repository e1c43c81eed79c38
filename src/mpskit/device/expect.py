"""Guesses the device without importing torch, which takes a second or more.

It serves lines that must appear at once, such as a test run's header. It reads package metadata and
device files, so its answer is "expected" and decides nothing. The rules are those of
:func:`mpskit.get_optimal_device`; only torch's own facts are guessed.
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
    """Guess torch's facts from its local version: ``+cu128``, ``+xpu``, ``+cpu``."""
    local = version.partition("+")[2]
    kinds = [*KINDS.values(), ROCM]
    built = next((kind for kind in kinds if kind.build and local.startswith(kind.build)), None)
    if built is None and local != "cpu":
        built = KINDS[ROCM.name]  # PyPI's Linux wheels are built for CUDA without saying so
    found = [_cards(host, built)] if built else []
    if host.kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM):
        metal = (kind for kind in kinds if kind.status is StatusRule.METAL)
        found = [Found(kind, built=True, count=1) for kind in metal]
    return TorchFacts(version, {one.kind.name: one for one in found})


def _cards(host: Host, kind: Kind) -> Found:
    count = card_count(kind.vendor) if kind.vendor and host.kind is HostKind.LINUX else 0
    return Found(kind, built=count > 0, count=count)
