"""Whether a backend works on this machine, and why not: pure rules over Host and TorchFacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mpskit._base.values import Value
from mpskit.backends.facts import Found, TorchFacts
from mpskit.backends.kinds import KINDS, ORDER, ROCM, StatusRule
from mpskit.backends.versions import has, minimum_macos, older
from mpskit.device.codes import ReasonCode
from mpskit.host import Host, HostKind

__all__ = ["BackendStatus", "ProbeAnswer", "backend_statuses", "mps_status"]


class BackendStatus(Value):
    """Whether one backend can be used, and what would fix it.

    Attributes:
        device: the device type.
        label: the backend's usual name, ``CUDA 12.8`` or ``ROCm (HIP 6.2)`` for ``cuda``.
        built: this build of torch has the backend.
        available: torch says that there is a device.
        usable: tensors can be put on it.
        count: how many devices there are.
        code: why it is not usable; None if it is.
        reason: the same in one sentence.
        fix: one command or action; None where nothing helps.
    """

    device: str
    label: str = ""
    built: bool
    available: bool
    usable: bool
    count: int = 0
    code: ReasonCode | None = None
    reason: str = ""
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.device}: {'usable' if self.usable else self.reason}"


class ProbeAnswer(NamedTuple):
    """The outcome of an MPS probe.

    Attributes:
        failure: what failed, or that there was no answer; None if real work gave right results.
        waited: seconds after which a probe without an answer was given up; 0 for an answer.
    """

    failure: str | None = None
    waited: float = 0

    @property
    def known(self) -> bool:
        """Whether the probe had an answer."""
        return not self.waited


_Verdict = tuple[ReasonCode, str, str | None]
_NATIVE_PYTHON = "/opt/homebrew/bin/python3 -m venv .venv && .venv/bin/python -m pip install torch"


def backend_statuses(
    host: Host,
    facts: TorchFacts,
    *,
    disable_mps: bool = False,
    probe: Callable[[], ProbeAnswer] | None = None,
) -> list[BackendStatus]:
    """Return the status of every backend, torch's plug-ins included, in order of preference.

    Args:
        host: the machine.
        facts: what torch says, or is guessed to say.
        disable_mps: as for :func:`mps_status`.
        probe: as for :func:`mps_status`.
    """

    def judged(name: str) -> BackendStatus:
        found = facts.of(name)
        if found.kind.status is StatusRule.METAL:
            return mps_status(host, facts, disabled=disable_mps, probe=probe)
        return _card(found) if found.kind.status is StatusRule.CARD else _status(found, None)

    others = [name for name in facts.found if name not in KINDS]
    return [judged(one) for name in ORDER for one in (others if name == "*" else [name])]


def _card(found: Found) -> BackendStatus:
    """Judge a backend with cards of its own by torch's build and device count."""
    kind = found.kind
    verdict: _Verdict | None = None
    if not found.built:
        titles = f"{kind.title} or {ROCM.title}" if kind.name == ROCM.name else kind.title
        verdict = (ReasonCode.NOT_BUILT, f"this torch was built without {titles}", kind.install)
    elif not found.count and found.trouble:
        why = f"torch cannot start {kind.title}: {found.trouble.partition('. ')[0]}"
        verdict = (ReasonCode.NO_DRIVER, why, kind.look)
    elif not found.count:
        hidden = f", or {kind.hidden_by} hides it" if kind.hidden_by else ""
        why = f"torch sees no {kind.title} device (no card, no driver, no permission{hidden})"
        verdict = (ReasonCode.NO_DEVICE, why, kind.look)
    return _status(found, verdict)


def mps_status(
    host: Host,
    facts: TorchFacts,
    *,
    disabled: bool = False,
    probe: Callable[[], ProbeAnswer] | None = None,
) -> BackendStatus:
    """Return the status of MPS, with the most direct cause if it cannot be used.

    Args:
        host: the machine.
        facts: what torch says.
        disabled: ``MPSKIT_DISABLE_MPS`` is set.
        probe: asked only on a virtual machine where torch claims a device.
    """
    verdict = _disabled(disabled)
    for rule in (_wrong_machine, _wrong_torch, _wrong_system):
        verdict = verdict or rule(host, facts)
    if verdict is None and host.is_vm and probe is not None:
        verdict = _vm(probe())
    return _status(facts.of("mps"), verdict)


def _status(found: Found, verdict: _Verdict | None) -> BackendStatus:
    code, reason, fix = verdict or (None, "", None)
    return BackendStatus(
        device=found.kind.name,
        label=found.label,
        built=found.built,
        available=found.count > 0,
        usable=verdict is None,
        count=found.count,
        code=code,
        reason=reason,
        fix=fix,
    )


def _disabled(disabled: bool) -> _Verdict | None:
    if not disabled:
        return None
    why = "MPSKIT_DISABLE_MPS is set"
    return ReasonCode.DISABLED_BY_USER, why, "unset MPSKIT_DISABLE_MPS"


def _wrong_machine(host: Host, facts: TorchFacts) -> _Verdict | None:
    if not host.is_mac:
        why = "MPS is the Mac's GPU backend and this is not a Mac"
        simulate = "mpskit simulate m1-16gb -- your_script.py"
        return ReasonCode.NOT_A_MAC, why, simulate if has("simulation", facts.version) else None
    if host.kind is HostKind.APPLE_SILICON_ROSETTA:
        why = "this Python is an Intel build that runs under Rosetta on an Apple-silicon Mac"
        return ReasonCode.ROSETTA, why, _NATIVE_PYTHON
    if host.kind is HostKind.INTEL_MAC:
        return _intel(host, facts)
    return None


def _intel(host: Host, facts: TorchFacts) -> _Verdict | None:
    """Judge an Intel Mac: MPS ran on some AMD GPUs until torch 2.13 required unified memory."""
    discrete = has("mps.discrete_gpu", facts.version)
    if facts.of("mps").count and discrete:
        return None
    if host.metal_device is not None and not discrete:
        why = (
            f"torch {facts.version} supports MPS only on unified memory, not on {host.metal_device}"
        )
        return ReasonCode.DISCRETE_GPU_UNSUPPORTED, why, "python -m pip install 'torch==2.2.2'"
    why = "this is an Intel Mac: PyTorch uses its CPU only (torch 2.2.2 is the last build for it)"
    return ReasonCode.INTEL_MAC, why, "export MPSKIT_DEVICE=cpu"


def _wrong_torch(host: Host, facts: TorchFacts) -> _Verdict | None:
    del host
    if not facts.of("mps").built:
        why = "this torch was built without MPS"
        fix = "python -m pip install --force-reinstall torch"
        return ReasonCode.NOT_BUILT, why, fix
    if facts.of("mps").bad_fork:
        why = "this process was forked after Metal had been used, which Metal does not support"
        fix = "multiprocessing.set_start_method('spawn')  # before the first child starts"
        return ReasonCode.BAD_FORK, why, fix
    return None


def _wrong_system(host: Host, facts: TorchFacts) -> _Verdict | None:
    floor = minimum_macos(facts.version)
    if older(host.os_version, floor):
        why = f"torch {facts.version} needs macOS {floor} for MPS and this is {host.os_version}"
        return ReasonCode.MACOS_TOO_OLD, why, "softwareupdate --install --recommended"
    if not facts.of("mps").count:
        why = "torch finds no Metal device (a sandbox, a container, or a session without a GPU)"
        return ReasonCode.NO_METAL_DEVICE, why, "system_profiler SPDisplaysDataType"
    return None


def _vm(answer: ProbeAnswer) -> _Verdict | None:
    if answer.failure is None:
        return None
    what = "this is a virtual machine that offers MPS"
    if not answer.known:
        why = f"{what}, and whether it works is unknown: {answer.failure}"
        return ReasonCode.VM_NOT_KNOWN, why, "get_optimal_device(refresh=True)  # tries again"
    why = f"{what}, but work on it fails: {answer.failure}"
    return ReasonCode.VM_UNUSABLE, why, "export MPSKIT_DEVICE=cpu"
