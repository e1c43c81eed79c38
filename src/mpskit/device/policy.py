"""Which device wins: a pure function of the request and of what each backend's status says.

Who wins, from the strongest: ``MPSKIT_DISABLE_MPS`` (it makes MPS unusable), ``use_gpu=False``,
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
_CPU_ONLY = ("cpu",)
_TRY_BOTH = (
    "Small models are often faster on the CPU; to find out, time a few steps on this device and on "
    "get_optimal_device(use_gpu=False).device."
)


class Request(NamedTuple):
    """What the caller and the variables ask for, None where they are silent."""

    use_gpu: bool = True
    force_mps: bool = False
    device: str | None = None
    policy: str | tuple[str, ...] | None = None
    env_policy: str | tuple[str, ...] | None = None
    local_rank: int | None = None


class Decision(NamedTuple):
    """The device, and everything that will be said about it.

    Attributes:
        device: as torch writes it.
        fallback: what to warn of when the device that was asked for cannot be used.
        refusal: the same for a caller who takes no other device.
        blocked: the status of the device that was asked for, in that case.
    """

    device: str
    reason: str
    basis: Basis
    rejected: tuple[Rejected, ...] = ()
    advice: tuple[str, ...] = ()
    fallback: str | None = None
    refusal: str | None = None
    blocked: Rejected | None = None


class _Wish(NamedTuple):
    """One rule's pick: an order of device types, and how it speaks of itself."""

    order: tuple[str, ...]
    source: str
    basis: Basis
    # The one device that was asked for by name: not getting it is worth a warning.
    named: str | None = None


def decide(request: Request, statuses: Sequence[BackendStatus], *, apple_silicon: bool) -> Decision:
    """Choose among the backends.

    Args:
        request: what is wanted.
        statuses: one per backend, the CPU's included.
        apple_silicon: the machine is one that the conservative policy sends to its CPU.

    Raises:
        DeviceUnavailableError: ``LOCAL_RANK`` is beyond the number of CUDA devices.
    """
    known = {status.device: status for status in statuses}
    wishes = _wishes(request, apple_silicon=apple_silicon)
    wish = wishes[0]
    order = _expand(wish.order, known)
    chosen = next(name for name in order if _usable(name, known))
    index = _index(chosen, wish, request, known)
    blocked = _blocked(wish, chosen, known)
    return Decision(
        device=chosen if index is None else f"{chosen}:{index}",
        reason=_reason(known[chosen], wish, blocked),
        basis=wish.basis if blocked is None else Basis.DEFAULT,
        rejected=_rejected(chosen, index, wishes, blocked, known),
        advice=_advice(chosen, wish, known),
        fallback=_refusal(wish, blocked, f": using {chosen}"),
        refusal=_refusal(wish, blocked),
        blocked=blocked,
    )


def favours_its_cpu(host: Host) -> bool:
    """Return whether the conservative policy sends a machine to its CPU: any Apple silicon."""
    return host.kind in (HostKind.APPLE_SILICON, HostKind.APPLE_SILICON_ROSETTA, HostKind.MAC_VM)


def _wishes(request: Request, *, apple_silicon: bool) -> list[_Wish]:
    """Every request that was made, the strongest first; ``auto`` is always the last."""
    wishes = []
    if not request.use_gpu:
        wishes.append(_Wish(_CPU_ONLY, "use_gpu=False", Basis.FORCED, "cpu"))
    if request.force_mps:
        wishes.append(_Wish(("mps", *ORDER), "force_mps=True", Basis.FORCED, "mps"))
    if request.device:
        kind = request.device
        source = f"MPSKIT_DEVICE={kind}"
        wishes.append(_Wish((kind.split(":")[0], *ORDER), source, Basis.FORCED, kind))
    for policy, label in ((request.policy, "policy"), (request.env_policy, POLICY)):
        if policy is not None:
            wishes.append(_policy_wish(policy, label, apple_silicon=apple_silicon))
    return [*wishes, _Wish(ORDER, "auto", Basis.DEFAULT)]


def _policy_wish(policy: str | tuple[str, ...], label: str, *, apple_silicon: bool) -> _Wish:
    if isinstance(policy, str):
        careful = policy == "conservative" and apple_silicon
        order = _CONSERVATIVE_ORDER if careful else ORDER
        return _Wish(order, f"{label}={policy}", Basis.DEFAULT)
    return _Wish((*policy, "cpu"), f"{label}={','.join(policy)}", Basis.FORCED)


def _expand(order: Sequence[str], known: dict[str, BackendStatus]) -> list[str]:
    """Put the accelerator that only torch.accelerator knows where ``*`` stands; drop repeats."""
    others = [name for name in known if name not in KINDS]
    names = [name for part in order for name in (others if part == "*" else [part])]
    return list(dict.fromkeys(names))


def _usable(name: str, known: dict[str, BackendStatus]) -> bool:
    return name in known and known[name].usable


def _index(
    chosen: str, wish: _Wish, request: Request, known: dict[str, BackendStatus]
) -> int | None:
    """Return the card's number: the one named, else the process's rank, else 0."""
    if not kind_of(chosen).numbered:
        return None
    named = wish.named or ""
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


def _blocked(wish: _Wish, chosen: str, known: dict[str, BackendStatus]) -> Rejected | None:
    """Return why the device asked for by name was not used, if one was and it was not."""
    if wish.named is None:
        return None
    kind, _, index = wish.named.partition(":")
    if kind != chosen:
        return _rejection(known.get(kind), wish.named)
    count = known[chosen].count
    if index and int(index) >= count:
        why = f"there is no {wish.named}: this machine has {count} {kind} device(s)"
        fix = f"export MPSKIT_DEVICE={kind}"
        return Rejected(device=wish.named, code=ReasonCode.NO_SUCH_INDEX, reason=why, fix=fix)
    return None


def _rejection(status: BackendStatus | None, name: str) -> Rejected:
    if status is None or status.code is None:
        why = f"torch knows no {name} device here"
        return Rejected(device=name, code=ReasonCode.NO_DEVICE, reason=why, fix="mpskit doctor")
    return Rejected(device=name, code=status.code, reason=status.reason, fix=status.fix)


def _reason(chosen: BackendStatus, wish: _Wish, blocked: Rejected | None) -> str:
    if blocked is not None:
        return f"{wish.source} asked for {blocked.device}, which cannot be used; this is next"
    if wish.basis is Basis.DEFAULT:
        return _auto_reason(chosen, wish)
    return f"{wish.source} asks for it"


def _auto_reason(chosen: BackendStatus, wish: _Wish) -> str:
    if chosen.device == "cpu" and wish.order == _CONSERVATIVE_ORDER:
        return f"{wish.source} trains on the CPU on Apple silicon unless force_mps=True"
    if chosen.device == "cpu":
        return "no accelerator can be used here"
    if chosen.device == "mps":
        return "the Mac's GPU can be used, and was faster in 71% of published model timings"
    return f"{chosen.label or chosen.device} can be used and comes first in the order"


def _rejected(
    chosen: str,
    index: int | None,
    wishes: Sequence[_Wish],
    blocked: Rejected | None,
    known: dict[str, BackendStatus],
) -> tuple[Rejected, ...]:
    """Every other candidate, then every request that lost."""
    losers = _losers(chosen, wishes[0], known)
    if blocked is not None and blocked.device not in {loser.device for loser in losers}:
        losers.append(blocked)
    return (*losers, *_outranked(wishes, chosen, index, known))


def _losers(chosen: str, wish: _Wish, known: dict[str, BackendStatus]) -> list[Rejected]:
    """Say of every other accelerator, and of the CPU, why it is not the one."""
    return [_loser(status, chosen, wish) for name, status in known.items() if name != chosen]


def _loser(status: BackendStatus, chosen: str, wish: _Wish) -> Rejected:
    name = status.device
    if not status.usable:
        return _rejection(status, name)
    code, why, fix = _why_not(name, chosen, wish)
    return Rejected(device=name, code=code, reason=why, fix=fix)


def _why_not(name: str, chosen: str, wish: _Wish) -> tuple[ReasonCode, str, str]:
    fix = f"export MPSKIT_DEVICE={name}"
    if wish.order == _CPU_ONLY:
        return ReasonCode.GPU_NOT_WANTED, "use_gpu=False was asked", "get_optimal_device()"
    if name == "mps" and wish.order == _CONSERVATIVE_ORDER:
        why = f"{wish.source} leaves it out"
        return ReasonCode.CONSERVATIVE_POLICY, why, "get_optimal_device(force_mps=True)"
    if wish.basis is Basis.FORCED and wish.named is None and name not in wish.order:
        return ReasonCode.NOT_IN_ORDER, f"{wish.source} does not name it", fix
    return ReasonCode.LOWER_PRIORITY, f"{chosen} comes before it", fix


def _outranked(
    wishes: Sequence[_Wish], chosen: str, index: int | None, known: dict[str, BackendStatus]
) -> list[Rejected]:
    """Every request but the strongest that would have led elsewhere."""
    lost = []
    answers = (chosen, f"{chosen}:{index or 0}")
    for wish in wishes[1:-1]:
        wanted = wish.named or next(n for n in _expand(wish.order, known) if _usable(n, known))
        if wanted not in answers:
            why = f"{wish.source} was overruled by {wishes[0].source}"
            code = ReasonCode.OUTRANKED
            fix = f"drop {wishes[0].source}"
            lost.append(Rejected(device=wanted, code=code, reason=why, fix=fix))
    return lost


def _advice(chosen: str, wish: _Wish, known: dict[str, BackendStatus]) -> tuple[str, ...]:
    if chosen == "mps" and wish.basis is Basis.DEFAULT:
        return (_TRY_BOTH,)
    if chosen == "cpu" and wish.order == _CONSERVATIVE_ORDER and _usable("mps", known):
        return ("Published timings favour MPS for most models: time both before you settle.",)
    return ()


def _refusal(wish: _Wish, blocked: Rejected | None, instead: str = "") -> str | None:
    if blocked is None:
        return None
    mend = f"; to mend it: {blocked.fix}" if blocked.fix else ""
    return f"{wish.source} asked for {blocked.device}, but {blocked.reason}{instead}{mend}"
