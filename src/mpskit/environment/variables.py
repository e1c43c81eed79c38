"""Explains the ``PYTORCH_*`` variables of the MPS backend, and sets them in time.

``docs/environment.md`` has the whole list. Torch reads each of them once: the fallback when it is
imported, the rest at the first use of MPS. :func:`configure_environment` never overwrites a user's
value silently.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping
from typing import get_args

from pydantic import ConfigDict, computed_field

from mpskit._base.arguments import shown, wrong_type
from mpskit._base.values import Value
from mpskit.allocator.watermarks import FALLBACK
from mpskit.backends.versions import torch_version
from mpskit.environment import rules
from mpskit.environment.plan import (
    FAST_MATH,
    PREFER_METAL,
    EnvironmentChange,
    OnConflict,
    Plan,
    plan_limits,
)
from mpskit.errors import ArgumentError, TooLateError
from mpskit.memory.amounts import Amount

__all__ = [
    "EnvironmentChange",
    "EnvironmentReport",
    "VariableReport",
    "configure_environment",
    "current_environment",
]

_HIDDEN = "(not shown)"


class VariableReport(Value):
    """One variable that is set.

    Attributes:
        name: the variable.
        value: its text; ``(not shown)`` for a variable that is neither torch's nor a misspelling of
            one: it may hold anything, and the report may end up in a public issue.
        meaning: what it is for, and what this value does.
        problem: what is wrong with it; None if nothing is.
        fix: the shell command that fixes it.
        read: when torch reads it: ``import``, ``allocator``, ``kernel`` or ``never``.
        source: where its meaning is documented.
    """

    name: str
    value: str
    meaning: str
    problem: str | None = None
    fix: str | None = None
    read: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        wrong = f"\n  wrong: {self.problem}\n  fix: {self.fix}" if self.problem else ""
        return f"{self.name}={self.value}: {self.meaning}{wrong}"


class EnvironmentReport(Value):
    """The ``PYTORCH_*`` variables that are set, by name.

    Attributes:
        variables: each that is set, misspellings included.
    """

    # Ignored extras let its own JSON, which also has ``problems``, be read back.
    model_config = ConfigDict(extra="ignore")

    variables: tuple[VariableReport, ...]

    @computed_field
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        return tuple(one.problem for one in self.variables if one.problem)

    def __str__(self) -> str:
        return "\n".join(map(str, self.variables)) or "no PYTORCH_* variable is set"


def current_environment(environ: Mapping[str, str] | None = None) -> EnvironmentReport:
    """Explain the ``PYTORCH_*`` variables: what each does, and what is wrong with it.

    It finds values that torch misreads (garbage counts as 0.0, which lifts the memory limit), pairs
    of ratios that make torch fail, values that do the opposite of what they say, names that no
    torch reads, and variables that the installed torch is too old for. Torch is not imported.

    Args:
        environ: the variables to explain; None for those of this process.

    Raises:
        ArgumentTypeError: ``environ`` is not a mapping of str to str.
    """
    environ = os.environ if environ is None else environ
    _check_texts(environ)
    names = sorted(name for name in environ if rules.relevant(name))
    return EnvironmentReport(
        variables=tuple(_report(name, environ, torch_version()) for name in names)
    )


def _check_texts(environ: object) -> None:
    if not isinstance(environ, Mapping):
        raise wrong_type("environ", "a mapping of str to str", environ)
    for one in itertools.chain.from_iterable(environ.items()):
        if not isinstance(one, str):
            raise wrong_type("every name and value of environ", "a str", one)


def _report(name: str, environ: Mapping[str, str], torch: str | None) -> VariableReport:
    found, variable = rules.judge(name, environ, torch), rules.variables().get(name)
    return VariableReport(
        name=name,
        value=environ[name] if rules.shown(name) else _HIDDEN,
        meaning=f"{found.effect} ({variable.meaning})" if variable else found.effect,
        problem=found.problem,
        fix=found.fix,
        read=variable.read if variable else None,
        source=variable.source if variable else None,
    )


def configure_environment(
    *,
    memory_limit: Amount | None = None,
    low: Amount | None = None,
    fallback: bool | None = None,
    fast_math: bool | None = None,
    prefer_metal: bool | None = None,
    on_conflict: OnConflict = "keep",
) -> EnvironmentChange:
    """Set the MPS variables of this process and its children, after checks and in time.

    An argument of None leaves its variable alone. A share or size of memory becomes a ratio of
    Metal's recommended working set, by the rule of ``mpskit.memory.working_set``, because asking
    Metal would be the first use of MPS. A limit below 1.4 times that set also gets a low ratio,
    without which torch fails. On a machine without MPS no limit is set, and a note says so.

    Args:
        memory_limit: the most MPS memory for this process: bytes, ``"12GiB"``, or a share of the
            RAM (``"80%"``, ``0.8``).
        low: where torch begins to collect cached memory, in the same forms. The default is torch's
            own 1.4 times the working set, or 1.4/1.7 of a limit that is below it.
        fallback: whether operators that MPS lacks run on the CPU. Before ``import torch`` only.
        fast_math: whether Metal kernels use fast, less exact arithmetic.
        prefer_metal: whether matrix products use Metal kernels rather than MPSGraph.
        on_conflict: what to do where the user has set another value: ``"keep"`` it, ``"override"``
            it, or raise an ``"error"``.

    Returns:
        What was set, removed and kept, and why.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: a limit is zero, more than the RAM, or below ``low``; or ``on_conflict`` is
            none of the three.
        SettingsError: ``on_conflict="error"`` and a variable has another value.
        TooLateError: torch has already read a variable that was to change. Nothing is changed.
    """
    _check(on_conflict, fallback=fallback, fast_math=fast_math, prefer_metal=prefer_metal)
    plan = Plan(os.environ, on_conflict)
    if memory_limit is not None or low is not None:
        plan_limits(plan, memory_limit, low)
    for name, wanted in ((FALLBACK, fallback), (FAST_MATH, fast_math)):
        if wanted is not None:
            plan.want(name, str(int(wanted)))
    if prefer_metal is not None:
        plan.want(PREFER_METAL, "1" if prefer_metal else None)
    _check_in_time(plan)
    return plan.apply()


def _check_in_time(plan: Plan) -> None:
    """Refuse to change variables that torch has read already."""
    torch = sys.modules.get("torch")
    if torch is None or not plan.changes:
        return
    if FALLBACK in plan.changes:
        raise TooLateError(
            f"{FALLBACK} is read when torch is imported, which has happened already: call "
            "configure_environment() before the first `import torch`, or set it in the shell",
            given=plan.changes[FALLBACK],
        )
    from mpskit.backends.memory import backend

    in_use = backend("mps").is_initialized()
    if in_use:
        names = ", ".join(plan.changes)
        raise TooLateError(
            f"{names}: read at the first use of MPS, which is in use already: call "
            "configure_environment() before the first tensor on mps (and before any torch.mps "
            "memory call), in a new process",
            given=dict(plan.changes),
        )
    if in_use is None:
        plan.notes.append(
            f"torch {torch.__version__} cannot say whether MPS is in use: this holds only if it "
            "was not used before"
        )


def _check(on_conflict: object, **flags: object) -> None:
    if on_conflict not in get_args(OnConflict):
        choices = ", ".join(map(repr, get_args(OnConflict)))
        raise ArgumentError(
            f"on_conflict must be one of {choices}, got {shown(on_conflict)}", given=on_conflict
        )
    for name, flag in flags.items():
        if flag is not None and not isinstance(flag, bool):
            raise wrong_type(name, "True, False or None", flag)
