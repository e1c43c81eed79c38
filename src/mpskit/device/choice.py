"""`get_optimal_device`: reads the facts, decides, caches the decision, and explains it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mpskit._base.arguments import shown, wrong_type
from mpskit._base.log import log
from mpskit._base.state import remembered
from mpskit.backends import facts as torch_facts
from mpskit.backends.facts import TorchFacts
from mpskit.device import status
from mpskit.device.info import DeviceChoice, DeviceInfo
from mpskit.device.policy import Decision, Request, decide, favours_its_cpu
from mpskit.device.status import BackendStatus, ProbeAnswer
from mpskit.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceFallbackWarning,
    DeviceUnavailableError,
    EnvironmentWarning,
    MpskitWarning,
)
from mpskit.host import Host, detect_host
from mpskit.settings import POLICIES, Settings, fingerprint, parse_policy, read_settings
from mpskit.system.machine import replaced_readings

if TYPE_CHECKING:
    from mpskit.speed.cascade import Asked

__all__ = ["backend_statuses", "forget_decisions", "get_optimal_device"]

_Key = tuple[object, ...]
_Warnings = tuple[tuple[type[MpskitWarning], str], ...]
_decisions: dict[_Key, tuple[DeviceChoice, _Warnings]] = remembered({})
_probed: dict[_Key, ProbeAnswer] = remembered({})
# Processes that have logged their one INFO line; a forked child counts anew.
_announced: set[int] = set()


def get_optimal_device(
    use_gpu: bool = True,
    force_mps: bool = False,
    *,
    workload: object | None = None,
    measure: str | None = None,
    policy: str | Sequence[str] | None = None,
    strict: bool = False,
    refresh: bool = False,
) -> DeviceChoice:
    """Choose the device to use and say why.

    The order is CUDA or ROCm (``cuda:LOCAL_RANK``), MPS, XPU, another accelerator that torch knows,
    CPU. In order of precedence: ``MPSKIT_DISABLE_MPS``, ``use_gpu=False``, ``force_mps=True``,
    ``MPSKIT_DEVICE``, ``policy=``, ``MPSKIT_POLICY``, ``auto``. No CUDA context is created, and the
    MPS allocator is not touched. On a virtual machine whose MPS would be chosen, a child process
    tries it first (at most 20 s, remembered per machine and torch version; after a time-out the
    next process tries for 60 s, and a third for 180 s).

    Args:
        use_gpu: False means the CPU.
        force_mps: MPS if it can work at all; otherwise the next device, with a warning.
        workload: what will run, to choose between CPU and MPS: a :class:`mpskit.Workload`, or
            a pair ``(model, batch)``, which is traced (a model in evaluation mode without
            gradients). Memory decides first, then recorded times, then the prediction.
        measure: what may run where the prediction is uncertain: None nothing, ``"cpu"`` steps on
            the CPU for about a second, ``"both"`` steps on the CPU and on MPS. Steps run on copies.
        policy: ``"auto"``, ``"conservative"`` (the CPU on Apple silicon unless ``force_mps``), or
            an order such as ``("mps", "cuda", "cpu")``; the CPU always ends it.
        strict: raise instead of falling back if the requested device cannot be used.
        refresh: decide again instead of using this process's cached answer.

    Returns:
        ``(device, info)``: a `torch.device` and a `DeviceInfo`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: the policy or ``measure`` is unknown, or a ``Workload`` is to be measured.
        EstimateError: the step of the workload's model cannot be traced.
        SettingsError: a variable has a wrong value.
        DeviceUnavailableError: ``strict`` is set and the requested device cannot be used, or
            ``LOCAL_RANK`` is beyond the number of CUDA devices.

    Warns:
        DeviceFallbackWarning: the requested device cannot be used, and another is.
        EnvironmentWarning: the device is MPS, and a launcher set ``WORLD_SIZE`` above 1.

    The 71% for MPS: 1,784 published CPU and MPS timings on M1 to M5 (``docs/device.md``).
    """
    if not (type(use_gpu) is type(force_mps) is type(strict) is type(refresh) is bool):
        raise _wrong_flag(use_gpu=use_gpu, force_mps=force_mps, strict=strict, refresh=refresh)
    if policy is not None and not (isinstance(policy, str) and policy in POLICIES):
        policy = _normal_policy(policy)
    asked = None if workload is measure is None else _asked(workload, measure)
    counts = None if asked is None else asked.workload
    key = (use_gpu, force_mps, policy, strict, os.getpid(), counts, measure, *fingerprint())
    found = None if refresh else _decisions.get(key)
    if found is None:
        request = Request(use_gpu=use_gpu, force_mps=force_mps, policy=policy)
        found = _decide(request, asked, strict=strict, refresh=refresh)
        _decisions[key] = found
    for category, text in found[1]:
        warnings.warn(text, category, stacklevel=2)
    return found[0]


def forget_decisions() -> None:
    """Forget this process's decisions, so that the next call decides anew."""
    _decisions.clear()
    _probed.clear()
    _announced.clear()


def backend_statuses(
    host: Host, facts: TorchFacts, settings: Settings, *, refresh: bool = False
) -> list[BackendStatus]:
    """Return every backend's status on this machine, in order of preference, the CPU last."""

    def ask() -> ProbeAnswer:
        return _probe(host, facts.version, settings, refresh=refresh)

    return status.backend_statuses(host, facts, disable_mps=settings.disable_mps, probe=ask)


def _probe(host: Host, version: str, settings: Settings, *, refresh: bool) -> ProbeAnswer:
    """Probe MPS at most once per process, so that nobody waits twice without a cache folder."""
    from mpskit.device.probe import remembered_probe

    if replaced_readings() is not None:
        # A simulated machine's verdict does not apply to this machine, so it is not cached.
        return remembered_probe(host, version, replace(settings, no_cache=True))
    key = (host.kind, version)
    if refresh or key not in _probed:
        _probed[key] = remembered_probe(host, version, settings, refresh=refresh)
    return _probed[key]


def _wrong_flag(**flags: object) -> ArgumentTypeError:
    name, value = next((name, flag) for name, flag in flags.items() if type(flag) is not bool)
    return wrong_type(name, "True or False", value)


def _asked(workload: object, measure: str | None) -> Asked:
    """Return what is known about the given workload; it is part of the decision's cache key."""
    from mpskit.speed.cascade import asked_of

    return asked_of(workload, measure)


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
            f"policy={shown(policy)} is not understood: use 'auto', 'conservative', or an order of "
            "device types such as ('mps', 'cuda', 'cpu')",
            given=policy,
        )
    return parsed


def _decide(
    request: Request, asked: Asked | None, *, strict: bool, refresh: bool
) -> tuple[DeviceChoice, _Warnings]:
    import torch

    settings = read_settings()
    host = detect_host(refresh=refresh)
    facts = torch_facts.read_torch()
    full = _complete(request, settings)
    decision = _decision(full, host, facts, settings, refresh=refresh)
    if strict and decision.blocked is not None:
        raise DeviceUnavailableError(str(decision.refusal), given=decision.blocked.device)
    if asked is not None:
        from mpskit.speed.cascade import weigh

        decision = weigh(decision, asked, host, facts.version)
    alone = _shared_gpu(decision.device, settings)
    info = _info(decision, host, facts, alone, asked)
    _announce(info)
    said: _Warnings = tuple((EnvironmentWarning, text) for text in alone)
    if decision.fallback is not None:
        said = ((DeviceFallbackWarning, decision.fallback), *said)
    return DeviceChoice(torch.device(decision.device), info), said


def _decision(
    request: Request, host: Host, facts: TorchFacts, settings: Settings, *, refresh: bool
) -> Decision:
    """Decide as if MPS worked, and probe it only if chosen, because a probe takes seconds."""
    favoured, disabled = favours_its_cpu(host), settings.disable_mps
    claimed = status.backend_statuses(host, facts, disable_mps=disabled)
    decision = decide(request, claimed, apple_silicon=favoured)
    if decision.device != "mps":
        return decision
    tried = backend_statuses(host, facts, settings, refresh=refresh)
    return decide(request, tried, apple_silicon=favoured)


def _shared_gpu(device: str, settings: Settings) -> tuple[str, ...]:
    """Return a warning if a launcher's processes would share the Mac's one GPU."""
    if device != "mps" or (settings.world_size or 1) < 2:
        return ()
    why = (
        f"WORLD_SIZE={settings.world_size}: torch has no collective operations for MPS tensors, "
        "and a Mac has one GPU and one memory for all its processes: train with one process, or "
        "with several on the CPU (MPSKIT_DEVICE=cpu, backend gloo)"
    )
    return (why,)


def _complete(request: Request, settings: Settings) -> Request:
    """Add the settings' requests to the caller's."""
    return Request(
        use_gpu=request.use_gpu,
        force_mps=request.force_mps,
        device=settings.device,
        policy=request.policy,
        env_policy=settings.policy,
        local_rank=settings.local_rank,
    )


def _info(
    decision: Decision,
    host: Host,
    facts: TorchFacts,
    warned: tuple[str, ...],
    asked: Asked | None,
) -> DeviceInfo:
    return DeviceInfo(
        device=decision.device,
        reason=decision.reason,
        basis=decision.basis,
        rejected=decision.rejected,
        advice=(
            *decision.advice,
            *(f"{text}." for text in warned),
            *_warnings_of(decision.device, host, facts, asked),
        ),
        machine=host.summary,
        torch_version=facts.version,
    )


def _warnings_of(
    device: str, host: Host, facts: TorchFacts, asked: Asked | None
) -> tuple[str, ...]:
    """Return the serious known bugs of this torch on this Mac, or those that a model meets."""
    if device != "mps":
        return ()
    from mpskit.correctness.issue_table import issues_for

    uses = None
    if asked is not None:
        from mpskit.speed.cascade import operators_used

        uses = operators_used(asked)
    found = issues_for(host, facts.version, uses)
    serious = [issue for issue in found if issue.severity == "serious"]
    return tuple(f"Known bug: {issue.summary} ({issue.source})." for issue in serious)


def _announce(info: DeviceInfo) -> None:
    """Log only the first decision of the process."""
    if os.getpid() in _announced:
        return
    _announced.add(os.getpid())
    facts = {"mpskit_device": info.device, "mpskit_basis": str(info.basis)}
    log.info("device %s: %s", info.device, info.reason, extra=facts)
    for other in info.rejected:
        log.debug("device %s not used (%s): %s", other.device, other.code, other.reason)
