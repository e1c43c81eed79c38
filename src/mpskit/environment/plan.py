"""Plans changes to the MPS variables: all are decided before the first is made."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Literal, TypeAlias

from mpskit._base.arguments import shown
from mpskit._base.values import Value
from mpskit.allocator.watermarks import (
    DEFAULT_HIGH,
    DEFAULT_LOW,
    FALLBACK,
    HIGH,
    HIGHEST,
    LOW,
    read_int,
    read_ratio,
)
from mpskit.environment.rules import low_for, ratio_text
from mpskit.errors import ArgumentError, SettingsError
from mpskit.host import HostKind, detect_host
from mpskit.memory.amounts import Amount, amount_bytes
from mpskit.memory.working_set import rule_of

__all__ = ["FAST_MATH", "PREFER_METAL", "EnvironmentChange", "OnConflict", "Plan", "plan_limits"]

OnConflict: TypeAlias = Literal["keep", "override", "error"]

FAST_MATH = "PYTORCH_MPS_FAST_MATH"
PREFER_METAL = "PYTORCH_MPS_PREFER_METAL"
_ANY_SIZE = 2**50
_NOT_A_MAC = "this machine is not an Apple-silicon Mac, so there is no MPS memory to limit"


class EnvironmentChange(Value):
    """What :func:`configure_environment` did to ``os.environ``.

    Attributes:
        set: the variables it set, with their new values.
        removed: the variables it removed, with the values they had.
        kept: the variables it left as they were, with their values.
        replaced: the old values of those in ``set`` that had one.
        notes: why, one sentence each.
    """

    set: dict[str, str]
    removed: dict[str, str]
    kept: dict[str, str]
    replaced: dict[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"set {name}={text}" for name, text in self.set.items()]
        lines += [f"removed {name} (it was {text})" for name, text in self.removed.items()]
        lines += [f"kept {name}={text}" for name, text in self.kept.items()]
        return "\n".join([*lines, *self.notes]) or "nothing to change"


class Plan:
    """The changes to make, complete before the first is made."""

    def __init__(self, environ: MutableMapping[str, str], on_conflict: OnConflict) -> None:
        self.environ = environ
        self.notes: list[str] = []
        self.changes: dict[str, str | None] = {}
        self._kept: dict[str, str] = {}
        self._on_conflict = on_conflict

    def want(self, name: str, text: str | None) -> bool:
        """Plan to give a variable a value (None: to remove it); False if the user's stays."""
        old = self.environ.get(name)
        if old is None:
            self.changes |= {} if text is None else {name: text}
            return True
        if _same(name, old, text):
            self._kept[name] = old
            return True
        if self._on_conflict == "error":
            raise SettingsError(
                f"{name}={shown(old)} is set already, and {_wanted(text)}: unset it, or say "
                "on_conflict='override'",
                given=old,
            )
        if self._on_conflict == "keep":
            self.keep(name, f"{name}={old} is yours and stays, although {_wanted(text)}")
            return False
        self.changes[name] = text
        self.notes.append(f"{name} was {old}; on_conflict='override' replaced it")
        return True

    def keep(self, name: str, why: str) -> None:
        """Leave a variable as it is, and say why."""
        self._kept[name] = self.environ[name]
        self.notes.append(why)

    def apply(self) -> EnvironmentChange:
        """Make the changes."""
        old = {name: self.environ[name] for name in self.changes if name in self.environ}
        new = {name: text for name, text in self.changes.items() if text is not None}
        for name in self.changes:
            if name not in new:
                del self.environ[name]
        self.environ.update(new)
        return EnvironmentChange(
            set=new,
            removed={name: text for name, text in old.items() if name not in new},
            replaced={name: text for name, text in old.items() if name in new},
            kept=self._kept,
            notes=tuple(self.notes),
        )


def _wanted(text: str | None) -> str:
    return "its removal was asked for" if text is None else f"{text} was asked for"


def _same(name: str, old: str, new: str | None) -> bool:
    """Return whether two texts mean the same to torch."""
    if new is None:
        return False
    if name in (HIGH, LOW):
        return read_ratio(old) == read_ratio(new)
    if name == FALLBACK:
        number = read_int(old)
        return number is not None and bool(number) == bool(int(new))
    return (old != "0") == (new != "0") if name == FAST_MATH else True


def plan_limits(plan: Plan, limit: Amount | None, low: Amount | None) -> None:
    """Plan the two ratios for amounts of memory; without MPS, only add a note.

    Raises:
        ArgumentTypeError: an amount has the wrong type.
        ArgumentError: an amount is zero or more than the RAM, or ``low`` is above ``limit``.
    """
    memory = _memory()
    if memory is None:
        for amount, name in ((limit, "memory_limit"), (low, "low")):
            if amount is not None:
                amount_bytes(amount, _ANY_SIZE, name)
        plan.notes.append(_NOT_A_MAC)
        return
    high = None if limit is None else _ratio(limit, *memory, "memory_limit")
    lowest = None if low is None else _ratio(low, *memory, "low")
    if high is not None and lowest is not None and lowest > high:
        raise ArgumentError(f"low={shown(low)} is above memory_limit={shown(limit)}", given=low)
    _plan_pair(plan, high, lowest)


def _plan_pair(plan: Plan, high: float | None, low: float | None) -> None:
    """Plan the ratios so that torch accepts the resulting pair."""
    before = dict(plan.changes)
    if high is not None:
        plan.want(HIGH, ratio_text(high))
    bound = _effective(plan, HIGH, DEFAULT_HIGH) or HIGHEST
    if low is not None:
        plan.want(LOW, ratio_text(low))
    elif _effective(plan, LOW, DEFAULT_LOW) > bound:
        plan.want(LOW, low_for(bound))
    if _effective(plan, LOW, DEFAULT_LOW) > bound:
        plan.changes = before
        plan.notes.append(
            f"neither {HIGH} nor {LOW} was changed: torch refuses a low ratio above the high one"
        )


def _effective(plan: Plan, name: str, default: float) -> float:
    """Return the ratio that torch will read once the plan is applied."""
    text = plan.changes.get(name, plan.environ.get(name))
    return default if text is None else read_ratio(text) or 0.0


def _memory() -> tuple[int, int] | None:
    """Return the RAM and the rule's recommended working set; None without MPS."""
    host = detect_host()
    # A Python under Rosetta has no MPS, though its Mac has a working set.
    rule = rule_of(host) if host.kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM) else None
    if rule is None or host.memory_total_bytes is None:
        return None
    return host.memory_total_bytes, rule.recommended_bytes


def _ratio(amount: Amount, ram: int, recommended: int, name: str) -> float:
    """Translate an amount of memory into a ratio of the working set."""
    size = amount_bytes(amount, ram, name)
    if size > ram:
        raise ArgumentError(
            f"{name}={shown(amount)} is more than this machine's {ram} bytes: it would limit "
            "nothing",
            given=amount,
        )
    ratio = min(size / recommended, HIGHEST)
    if ratio_text(ratio) == "0":
        raise ArgumentError(
            f"{name}={shown(amount)} rounds to a ratio of 0, which would lift the limit",
            given=amount,
        )
    return ratio
