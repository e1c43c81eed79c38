"""`get_optimal_device`: reads, decides, remembers, and says what it did."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

from mpskit._base.arguments import wrong_type
from mpskit._base.log import log
from mpskit._base.state import remembered
from mpskit.backends import facts as torch_facts
from mpskit.backends.facts import TorchFacts
from mpskit.device import status
from mpskit.device.info import DeviceChoice, DeviceInfo
from mpskit.device.policy import Decision, Request, decide, favours_its_cpu
from mpskit.device.status import BackendStatus
from mpskit.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceFallbackWarning,
    DeviceUnavailableError,
)
from mpskit.host import Host, detect_host
from mpskit.settings import POLICIES, Settings, fingerprint, parse_policy, read_settings
from mpskit.system.machine import replaced_readings

__all__ = ["backend_statuses", "forget_decisions", "get_optimal_device"]

_Key = tuple[object, ...]
_decisions: dict[_Key, tuple[DeviceChoice, str | None]] = remembered({})
_probed: dict[_Key, str | None] = remembered({})
# The processes that have had their one INFO line; a forked child is another process.
_announced: set[int] = set()


def get_optimal_device(
    use_gpu: bool = True,
    force_mps: bool = False,
    *,
    workload: object | None = None,
    policy: str | Sequence[str] | None = None,
    strict: bool = False,
    refresh: bool = False,
) -> DeviceChoice:
    """Choose the device to use and say why.

    The order is CUDA or ROCm (``cuda:LOCAL_RANK``), MPS, XPU, another accelerator that torch knows,
    CPU. Who wins: ``MPSKIT_DISABLE_MPS``, ``use_gpu=False``, ``force_mps=True``,
    ``MPSKIT_DEVICE``, ``policy=``, ``MPSKIT_POLICY``, ``auto``. No CUDA context is made and the
    MPS allocator is not touched. On a virtual machine that offers MPS, a child process tries it
    first (at most 20 s, remembered per machine and torch version).

    Args:
        use_gpu: False means the CPU.
        force_mps: MPS if it can work at all; otherwise the next device, with a warning.
        workload: reserved; this version takes only None.
        policy: ``"auto"``, ``"conservative"`` (the CPU on Apple silicon unless ``force_mps``), or
            an order such as ``("mps", "cuda", "cpu")``; the CPU always ends it.
        strict: raise instead of falling back when the device asked for cannot be used.
        refresh: ask again instead of using this process's earlier answer.

    Returns:
        ``(device, info)``: a `torch.device` and a `DeviceInfo`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: the policy is unknown, or a workload was given.
        SettingsError: a variable has a wrong value.
        DeviceUnavailableError: ``strict`` and the device asked for cannot be used, or
            ``LOCAL_RANK`` is beyond the number of CUDA devices.

    The 71% for MPS: 1,784 published CPU and MPS timings on M1 to M5 (``docs/device.md``).
    """
    if not (type(use_gpu) is type(force_mps) is type(strict) is type(refresh) is bool):
        raise _wrong_flag(use_gpu=use_gpu, force_mps=force_mps, strict=strict, refresh=refresh)
    if workload is not None or policy is not None:
        policy = _check(workload, policy)
    key = (use_gpu, force_mps, policy, strict, os.getpid(), *fingerprint())
    found = None if refresh else _decisions.get(key)
    if found is None:
        request = Request(use_gpu=use_gpu, force_mps=force_mps, policy=policy)
        found = _decide(request, strict=strict, refresh=refresh)
        _decisions[key] = found
    if found[1] is not None:
        warnings.warn(found[1], DeviceFallbackWarning, stacklevel=2)
    return found[0]


def forget_decisions() -> None:
    """Forget this process's decisions, so that the next call asks again."""
    _decisions.clear()
    _probed.clear()
    _announced.clear()


def backend_statuses(
    host: Host, facts: TorchFacts, settings: Settings, *, refresh: bool = False
) -> list[BackendStatus]:
    """Return every backend's status on this machine, the strongest first, the CPU last."""

    def ask() -> str | None:
        return _probe(host, facts.version, settings, refresh=refresh)

    return status.backend_statuses(host, facts, disable_mps=settings.disable_mps, probe=ask)


def _probe(host: Host, version: str, settings: Settings, *, refresh: bool) -> str | None:
    """Try MPS at most once in a process: also without a cache folder nobody waits twice."""
    from mpskit.device.probe import remembered_probe

    if replaced_readings() is not None:
        # A simulated machine's verdict is not this machine's: nothing of it is kept.
        return remembered_probe(host, version, replace(settings, no_cache=True))
    key = (host.kind, version)
    if refresh or key not in _probed:
        _probed[key] = remembered_probe(host, version, settings, refresh=refresh)
    return _probed[key]


def _wrong_flag(**flags: object) -> ArgumentTypeError:
    name, value = next((name, flag) for name, flag in flags.items() if type(flag) is not bool)
    return wrong_type(name, "True or False", value)


def _check(workload: object, policy: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    """Refuse a workload, and return the policy in its normal form."""
    if workload is not None:
        raise ArgumentError(
            "workload= is reserved: this version of mpskit decides without it, so leave it None",
            given=workload,
        )
    if policy is None or (isinstance(policy, str) and policy in POLICIES):
        return policy
    return _normal_policy(policy)


def _normal_policy(policy: object) -> str | tuple[str, ...]:
    if isinstance(policy, str):
        text = policy
    elif isinstance(policy, Sequence) and all(isinstance(part, str) for part in policy):
        text = ",".join(policy)
    else:
        raise wrong_type("policy", "a name or an order of device types", policy)
    parsed = parse_policy(text)
    if parsed is None:
        raise ArgumentError(
            f"policy={policy!r} is not understood: use 'auto', 'conservative', or an order of "
            "device types such as ('mps', 'cuda', 'cpu')",
            given=policy,
        )
    return parsed


def _decide(request: Request, *, strict: bool, refresh: bool) -> tuple[DeviceChoice, str | None]:
    import torch

    settings = read_settings()
    host = detect_host(refresh=refresh)
    facts = torch_facts.read_torch()
    statuses = backend_statuses(host, facts, settings, refresh=refresh)
    full = _complete(request, settings)
    decision = decide(full, statuses, apple_silicon=favours_its_cpu(host))
    if strict and decision.blocked is not None:
        raise DeviceUnavailableError(str(decision.refusal), given=decision.blocked.device)
    info = _info(decision, host, facts)
    _announce(info)
    return DeviceChoice(torch.device(decision.device), info), decision.fallback


def _complete(request: Request, settings: Settings) -> Request:
    """Add what the variables ask to what the caller asks."""
    return Request(
        use_gpu=request.use_gpu,
        force_mps=request.force_mps,
        device=settings.device,
        policy=request.policy,
        env_policy=settings.policy,
        local_rank=settings.local_rank,
    )


def _info(decision: Decision, host: Host, facts: TorchFacts) -> DeviceInfo:
    return DeviceInfo(
        device=decision.device,
        reason=decision.reason,
        basis=decision.basis,
        rejected=decision.rejected,
        advice=(*decision.advice, *_warnings_of(decision.device, host, facts)),
        machine=host.summary,
        torch_version=facts.version,
    )


def _warnings_of(device: str, host: Host, facts: TorchFacts) -> tuple[str, ...]:
    """Name the serious known bugs of this torch on this Mac."""
    if device != "mps":
        return ()
    from mpskit.correctness.known_issues import known_issues

    serious = [issue for issue in known_issues(host, facts.version) if issue.severity == "serious"]
    return tuple(f"Known bug: {issue.summary} ({issue.source})." for issue in serious)


def _announce(info: DeviceInfo) -> None:
    """Log the first decision of the process, and nothing after it."""
    if os.getpid() in _announced:
        return
    _announced.add(os.getpid())
    facts = {"mpskit_device": info.device, "mpskit_basis": str(info.basis)}
    log.info("device %s: %s", info.device, info.reason, extra=facts)
    for other in info.rejected:
        log.debug("device %s not used (%s): %s", other.device, other.code, other.reason)
