"""Can this backend work on this machine, and if not, why: pure rules over Host and TorchFacts."""

from __future__ import annotations

from collections.abc import Callable

from mpskit._base.values import Value
from mpskit.backends.facts import TorchFacts
from mpskit.backends.versions import has, minimum_macos, older
from mpskit.device.codes import ReasonCode
from mpskit.host import Host, HostKind

__all__ = ["BackendStatus", "cpu_status", "cuda_status", "mps_status", "other_status"]


class BackendStatus(Value):
    """Whether one backend can be used, and what would mend it.

    Attributes:
        device: the device type.
        built: this build of torch has the backend.
        available: torch says that there is a device.
        usable: work can be given to it.
        count: how many devices there are.
        code: why it is not usable; None if it is.
        reason: the same in one sentence.
        fix: one thing a person can type or do; None where nothing helps.
    """

    device: str
    built: bool
    available: bool
    usable: bool
    count: int = 0
    code: ReasonCode | None = None
    reason: str = ""
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.device}: usable" if self.usable else f"{self.device}: {self.reason}"


_Verdict = tuple[ReasonCode, str, str | None]
_NATIVE_PYTHON = "/opt/homebrew/bin/python3 -m venv .venv && .venv/bin/python -m pip install torch"


def cpu_status() -> BackendStatus:
    """Return the CPU's status: it always works."""
    return BackendStatus(device="cpu", built=True, available=True, usable=True, count=1)


def cuda_status(facts: TorchFacts) -> BackendStatus:
    """Return the status of CUDA or ROCm."""
    built, found = facts.cuda_built is not None, facts.cuda_count > 0
    verdict: _Verdict | None = None
    if not built:
        fix = "python -m pip install torch  # on a machine with an NVIDIA or AMD card"
        verdict = (ReasonCode.NOT_BUILT, "this torch was built without CUDA or ROCm", fix)
    elif not found:
        fix = "rocminfo" if facts.rocm else "nvidia-smi"
        why = "torch sees no CUDA device (no card, no driver, or CUDA_VISIBLE_DEVICES hides it)"
        verdict = (ReasonCode.NO_DEVICE, why, fix)
    return _status("cuda", built=built, available=found, count=facts.cuda_count, verdict=verdict)


def other_status(facts: TorchFacts) -> BackendStatus | None:
    """Return the status of an accelerator that is neither CUDA nor MPS, if torch has one."""
    if facts.other is None:
        return None
    name, count = facts.other
    return _status(name, built=True, available=True, count=count, verdict=None)


def mps_status(
    host: Host,
    facts: TorchFacts,
    *,
    disabled: bool = False,
    probe: Callable[[], str | None] | None = None,
) -> BackendStatus:
    """Return the status of MPS, with the nearest cause when it cannot be used.

    Args:
        host: the machine.
        facts: what torch says.
        disabled: ``MPSKIT_DISABLE_MPS`` is set.
        probe: asked only on a virtual machine where torch claims a device; returns what failed,
            or None if real work came out right.
    """
    verdict = _disabled(disabled)
    for rule in (_wrong_machine, _wrong_torch, _wrong_system):
        verdict = verdict or rule(host, facts)
    if verdict is None and host.is_vm and probe is not None:
        verdict = _vm(probe())
    available = facts.mps_available
    return _status(
        "mps", built=facts.mps_built, available=available, count=int(available), verdict=verdict
    )


def _status(
    device: str, *, built: bool, available: bool, count: int, verdict: _Verdict | None
) -> BackendStatus:
    code, reason, fix = verdict or (None, "", None)
    return BackendStatus(
        device=device,
        built=built,
        available=available,
        usable=verdict is None,
        count=count,
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
        return ReasonCode.NOT_A_MAC, why, "mpskit simulate m1-16gb -- your_script.py"
    if host.kind is HostKind.APPLE_SILICON_ROSETTA:
        why = "this Python is an Intel build that runs under Rosetta on an Apple-silicon Mac"
        return ReasonCode.ROSETTA, why, _NATIVE_PYTHON
    if host.kind is HostKind.INTEL_MAC:
        return _intel(host, facts)
    return None


def _intel(host: Host, facts: TorchFacts) -> _Verdict | None:
    """MPS worked on some AMD GPUs of Intel Macs until torch 2.13 refused all but unified memory."""
    discrete = has("mps.discrete_gpu", facts.version)
    if facts.mps_available and discrete:
        return None
    if host.metal_device is not None and not discrete:
        why = f"torch {facts.version} runs MPS only on unified memory, not on {host.metal_device}"
        return ReasonCode.DISCRETE_GPU_UNSUPPORTED, why, "python -m pip install 'torch==2.2.2'"
    why = "this is an Intel Mac: PyTorch uses its CPU only (torch 2.2.2 is the last build for it)"
    return ReasonCode.INTEL_MAC, why, "export MPSKIT_DEVICE=cpu"


def _wrong_torch(host: Host, facts: TorchFacts) -> _Verdict | None:
    del host
    if not facts.mps_built:
        why = "this torch was built without MPS"
        fix = "python -m pip install --force-reinstall torch"
        return ReasonCode.NOT_BUILT, why, fix
    if facts.mps_bad_fork:
        why = "this process was forked after Metal had been used, which Metal does not survive"
        fix = "multiprocessing.set_start_method('spawn')  # before the first child starts"
        return ReasonCode.BAD_FORK, why, fix
    return None


def _wrong_system(host: Host, facts: TorchFacts) -> _Verdict | None:
    floor = minimum_macos(facts.version)
    if older(host.os_version, floor):
        why = f"torch {facts.version} needs macOS {floor} for MPS and this is {host.os_version}"
        return ReasonCode.MACOS_TOO_OLD, why, "softwareupdate --install --recommended"
    if not facts.mps_available:
        why = "torch finds no Metal device (a sandbox, a container, or a session without a GPU)"
        return ReasonCode.NO_METAL_DEVICE, why, "system_profiler SPDisplaysDataType"
    return None


def _vm(failure: str | None) -> _Verdict | None:
    if failure is None:
        return None
    why = f"this is a virtual machine that offers MPS, but work on it fails: {failure}"
    return ReasonCode.VM_UNUSABLE, why, "export MPSKIT_DEVICE=cpu"
