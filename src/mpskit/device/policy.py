"""Which device wins: a pure function of the request and each backend's status.

Requests in order of precedence: ``MPSKIT_DISABLE_MPS`` (it makes MPS unusable), ``use_gpu=False``,
``force_mps=True``, ``MPSKIT_DEVICE``, ``policy=``, ``MPSKIT_POLICY``, and ``auto``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mpskit.backends.kinds import KINDS, ORDER, kind_of
from mpskit.device.codes import Basis, ReasonCode
from mpskit.device.info import Rejected
from mpskit.device.status import BackendStatus
from mpskit.errors import DeviceUnavailableError
from mpskit.host import Host, HostKind
from mpskit.settings import POLICY

__all__ = ["Decision", "Request", "decide", "favours_its_cpu"]

_CONSERVATIVE_ORDER = tuple(name for name in ORDER if name != "mps")
_TRY_BOTH = (
    "Small models are often faster on the CPU; to find out, time a few steps on this device and on "
    "get_optimal_device(use_gpu=False).device."
)


class Request(NamedTuple):
    """What the caller and the variables ask for; None where they ask nothing."""

    use_gpu: bool = True
    force_mps: bool = False
    device: str | None = None
    policy: str | tuple[str, ...] | None = None
    env_policy: str | tuple[str, ...] | None = None
    local_rank: int | None = None


class Decision(NamedTuple):
    """The chosen device, and everything reported about it.

    Attributes:
        device: as torch writes it.
        fallback: the warning if the requested device cannot be used.
        refusal: the same as an error message, for ``strict``.
        blocked: the requested device, in that case.
    """

    device: str
    reason: str
    basis: Basis
    rejected: tuple[Rejected, ...] = ()
    advice: tuple[str, ...] = ()
    fallback: str | None = None
    refusal: str | None = None
    blocked: Rejected | None = None


class _Pref(NamedTuple):
    """One request: an order of device types, and its name in messages.

    A request for one device lists only that: if it cannot be met, the next request counts.
    """

    order: tuple[str, ...]
    source: str
    basis: Basis
    # The device requested by name, whose absence deserves a warning.
    named: str | None = None
    # The request is for no GPU rather than for the CPU.
    no_gpu: bool = False


def decide(request: Request, statuses: Sequence[BackendStatus], *, apple_silicon: bool) -> Decision:
    """Choose among the backends.

    Args:
        request: what the caller and the variables ask for.
        statuses: one per backend, the CPU's included.
        apple_silicon: the conservative policy sends this machine to its CPU.

    Raises:
        DeviceUnavailableError: ``LOCAL_RANK`` is beyond the number of CUDA devices.
    """
    known = {status.device: status for status in statuses}
    prefs = _prefs(request, apple_silicon=apple_silicon)
    pref = prefs[0]
    chosen, lead = _choose(prefs, known)
    index = _index(chosen, lead, request, known)
    blocked = _blocked(pref, chosen, known)
    met = blocked is None or lead is not pref
    return Decision(
        device=chosen if index is None else f"{chosen}:{index}",
        reason=_reason(known[chosen], pref, lead, blocked),
        basis=lead.basis if met else Basis.DEFAULT,
        rejected=_rejected(chosen, index, prefs, lead, blocked, known),
        advice=_advice(chosen, lead, known),
        fallback=_fallback(pref, chosen, blocked),
        refusal=_refusal(pref, blocked),
        blocked=blocked,
    )


def _choose(prefs: Sequence[_Pref], known: dict[str, BackendStatus]) -> tuple[str, _Pref]:
    """Return the device, and the strongest request that can be met; ``auto`` always can."""
    return next(
        (name, pref)
        for pref in prefs
        for name in _expand(pref.order, known)
        if _usable(name, known)
    )


def favours_its_cpu(host: Host) -> bool:
    """Return whether the conservative policy sends a machine to its CPU: any Apple silicon."""
    return host.kind in (HostKind.APPLE_SILICON, HostKind.APPLE_SILICON_ROSETTA, HostKind.MAC_VM)


def _prefs(request: Request, *, apple_silicon: bool) -> list[_Pref]:
    """Return the requests made, the strongest first; ``auto`` is always the last."""
    prefs = []
    if not request.use_gpu:
        prefs.append(_Pref(("cpu",), "use_gpu=False", Basis.FORCED, "cpu", no_gpu=True))
    if request.force_mps:
        prefs.append(_Pref(("mps",), "force_mps=True", Basis.FORCED, "mps"))
    if request.device:
        kind = request.device
        source = f"MPSKIT_DEVICE={kind}"
        prefs.append(_Pref((kind.split(":")[0],), source, Basis.FORCED, kind))
    for policy, label in ((request.policy, "policy"), (request.env_policy, POLICY)):
        if policy is not None:
            prefs.append(_policy_pref(policy, label, apple_silicon=apple_silicon))
    return [*prefs, _Pref(ORDER, "auto", Basis.DEFAULT)]


def _policy_pref(policy: str | tuple[str, ...], label: str, *, apple_silicon: bool) -> _Pref:
    if isinstance(policy, str):
        careful = policy == "conservative" and apple_silicon
        order = _CONSERVATIVE_ORDER if careful else ORDER
        return _Pref(order, f"{label}={policy}", Basis.DEFAULT)
    return _Pref((*policy, "cpu"), f"{label}={','.join(policy)}", Basis.FORCED)


def _expand(order: Sequence[str], known: dict[str, BackendStatus]) -> list[str]:
    """Put the accelerator that only torch.accelerator knows where ``*`` stands; drop repeats."""
    others = [name for name in known if name not in KINDS]
    names = [name for part in order for name in (others if part == "*" else [part])]
    return list(dict.fromkeys(names))


def _usable(name: str, known: dict[str, BackendStatus]) -> bool:
    return name in known and known[name].usable


def _index(
    chosen: str, pref: _Pref, request: Request, known: dict[str, BackendStatus]
) -> int | None:
    """Return the card's number: the one named, else the process's rank, else 0."""
    if not kind_of(chosen).numbered:
        return None
    named = pref.named or ""
    if named.startswith(f"{chosen}:"):
        wanted = int(named.split(":")[1])
        return wanted if wanted < known[chosen].count else 0
    rank = request.local_rank or 0
    if rank >= known[chosen].count:
        raise DeviceUnavailableError(
            f"LOCAL_RANK={rank} but this machine has {known[chosen].count} {chosen} device(s): "
            f"start at most that many processes per machine (torchrun --nproc-per-node)",
            given=rank,
        )
    return rank


def _blocked(pref: _Pref, chosen: str, known: dict[str, BackendStatus]) -> Rejected | None:
    """Return why the device requested by name was not used; None if none was or it is used."""
    if pref.named is None:
        return None
    kind, _, index = pref.named.partition(":")
    if kind != chosen:
        return _rejection(known.get(kind), pref.named)
    count = known[chosen].count
    if index and int(index) >= count:
        why = f"there is no {pref.named}: this machine has {count} {kind} device(s)"
        fix = f"export MPSKIT_DEVICE={kind}"
        return Rejected(device=pref.named, code=ReasonCode.NO_SUCH_INDEX, reason=why, fix=fix)
    return None


def _rejection(status: BackendStatus | None, name: str) -> Rejected:
    if status is None or status.code is None:
        why = f"torch knows no {name} device here"
        return Rejected(device=name, code=ReasonCode.NO_DEVICE, reason=why, fix="mpskit doctor")
    return Rejected(device=name, code=status.code, reason=status.reason, fix=status.fix)


def _reason(chosen: BackendStatus, pref: _Pref, lead: _Pref, blocked: Rejected | None) -> str:
    own = (
        _auto_reason(chosen, lead) if lead.basis is Basis.DEFAULT else f"{lead.source} asks for it"
    )
    if blocked is None:
        return own
    then = "this is next" if lead is pref else own
    return f"{pref.source} asked for {blocked.device}, which cannot be used; {then}"


def _auto_reason(chosen: BackendStatus, pref: _Pref) -> str:
    if chosen.device == "cpu" and pref.order == _CONSERVATIVE_ORDER:
        return f"{pref.source} trains on the CPU on Apple silicon unless force_mps=True"
    if chosen.device == "cpu":
        return "no accelerator can be used here"
    if chosen.device == "mps":
        return "the Mac's GPU can be used, and was faster in 71% of published model timings"
    return f"{chosen.label or chosen.device} can be used and comes first in the order"


def _rejected(
    chosen: str,
    index: int | None,
    prefs: Sequence[_Pref],
    lead: _Pref,
    blocked: Rejected | None,
    known: dict[str, BackendStatus],
) -> tuple[Rejected, ...]:
    """Return every other candidate, then every overruled request."""
    losers = _losers(chosen, lead, known)
    if blocked is not None and blocked.device not in {loser.device for loser in losers}:
        losers.append(blocked)
    return (*losers, *_outranked(prefs, chosen, index, known))


def _losers(chosen: str, pref: _Pref, known: dict[str, BackendStatus]) -> list[Rejected]:
    """Say of every other accelerator, and of the CPU, why it was not chosen."""
    return [_loser(status, chosen, pref) for name, status in known.items() if name != chosen]


def _loser(status: BackendStatus, chosen: str, pref: _Pref) -> Rejected:
    name = status.device
    if not status.usable:
        return _rejection(status, name)
    code, why, fix = _why_not(name, chosen, pref)
    return Rejected(device=name, code=code, reason=why, fix=fix)


def _why_not(name: str, chosen: str, pref: _Pref) -> tuple[ReasonCode, str, str]:
    fix = f"export MPSKIT_DEVICE={name}"
    if pref.no_gpu:
        return ReasonCode.GPU_NOT_WANTED, "use_gpu=False was asked", "get_optimal_device()"
    if name == "mps" and pref.order == _CONSERVATIVE_ORDER:
        why = f"{pref.source} leaves it out"
        return ReasonCode.CONSERVATIVE_POLICY, why, "get_optimal_device(force_mps=True)"
    if pref.basis is Basis.FORCED and pref.named is None and name not in pref.order:
        return ReasonCode.NOT_IN_ORDER, f"{pref.source} does not name it", fix
    return ReasonCode.LOWER_PRIORITY, f"{chosen} comes before it", fix


def _outranked(
    prefs: Sequence[_Pref], chosen: str, index: int | None, known: dict[str, BackendStatus]
) -> list[Rejected]:
    """Return the weaker requests that would have led to another device."""
    lost = []
    answers = (chosen, f"{chosen}:{index or 0}")
    for pref in prefs[1:-1]:
        wanted = pref.named or next(n for n in _expand(pref.order, known) if _usable(n, known))
        if wanted not in answers:
            why = f"{pref.source} was overruled by {prefs[0].source}"
            code = ReasonCode.OUTRANKED
            fix = f"drop {prefs[0].source}"
            lost.append(Rejected(device=wanted, code=code, reason=why, fix=fix))
    return lost


def _advice(chosen: str, pref: _Pref, known: dict[str, BackendStatus]) -> tuple[str, ...]:
    if chosen == "mps" and pref.basis is Basis.DEFAULT:
        return (_TRY_BOTH,)
    if chosen == "cpu" and pref.order == _CONSERVATIVE_ORDER and _usable("mps", known):
        return ("Published timings favour MPS for most models: time both before you decide.",)
    return ()


def _fallback(pref: _Pref, chosen: str, blocked: Rejected | None) -> str | None:
    return _unmet(pref, blocked, f": using {chosen}") if blocked is not None else None


def _refusal(pref: _Pref, blocked: Rejected | None) -> str | None:
    return _unmet(pref, blocked, "") if blocked is not None else None


def _unmet(pref: _Pref, blocked: Rejected, then: str) -> str:
    fix = f"; to fix it: {blocked.fix}" if blocked.fix else ""
    return f"{pref.source} asked for {blocked.device}, but {blocked.reason}{then}{fix}"
