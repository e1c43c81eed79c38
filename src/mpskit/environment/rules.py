"""What each ``PYTORCH_*`` value does in torch: pure rules over ``data/environment.toml``.

Torch never reports a variable that it could not parse: ``PYTORCH_MPS_HIGH_WATERMARK_RATIO=abc`` is
0.0, which means no limit at all. ``mpskit.allocator.watermarks`` parses values as torch does, and
the rules here say what follows.
"""

from __future__ import annotations

import difflib
import functools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mpskit._base.data import read_toml
from mpskit.allocator.watermarks import (
    DEFAULT_HIGH,
    DEFAULT_LOW,
    HIGH,
    HIGHEST,
    LOW,
    int_problem,
    is_whole,
    read_int,
    read_ratio,
)
from mpskit.backends.versions import has

__all__ = [
    "Judgement",
    "Variable",
    "judge",
    "low_for",
    "ratio_text",
    "relevant",
    "variables",
]

_ALIKE = 0.8


class Variable(NamedTuple):
    """A row of ``data/environment.toml``."""

    name: str
    parse: str
    read: str
    meaning: str
    source: str
    feature: str | None = None
    choices: Sequence[str] = ()
    slips: Sequence[str] = ()


class Judgement(NamedTuple):
    """What a value does, what is wrong with it, and the fix."""

    effect: str
    problem: str | None = None
    fix: str | None = None


@functools.cache
def variables() -> Mapping[str, Variable]:
    """Return every variable that torch's MPS backend reads, and a few that it does not."""
    rows = read_toml("environment.toml")["variable"]
    return {row["name"]: Variable(**row) for row in rows}


def relevant(name: str) -> bool:
    """Return whether a variable is one of torch's, or looks like a misspelling of one."""
    upper = name.upper()
    return upper.startswith("PYTORCH_") or ("MPS" in upper and _meant(name) is not None)


def shown(name: str) -> bool:
    """Return whether a report may show a variable's value: torch's own, or a misspelling of one.

    Any other ``PYTORCH_*`` variable may hold anything, even a token.
    """
    return name in variables() or _meant(name) is not None


def _meant(name: str) -> str | None:
    """Return the variable that a name probably misspells."""
    upper = name.upper()
    known = [variable.name for variable in variables().values() if upper in variable.slips]
    found = known or difflib.get_close_matches(upper, variables(), n=1, cutoff=_ALIKE)
    return found[0] if found else None


def judge(name: str, environ: Mapping[str, str], torch: str | None) -> Judgement:
    """Return what a variable does with its present value.

    Args:
        name: the variable, which is in ``environ``.
        environ: all variables; the two ratios depend on each other.
        torch: torch's version; None if it is not known.
    """
    variable = variables().get(name)
    if variable is None:
        return _unknown(name, environ)
    if variable.feature and torch is not None and not has(variable.feature, torch):
        problem = f"torch {torch} is too old to read {name}"
        return Judgement("no effect", problem, f"unset {name}")
    return _PARSERS[variable.parse](variable, environ)


def _unknown(name: str, environ: Mapping[str, str]) -> Judgement:
    meant = _meant(name)
    if meant is not None:
        problem = f"no torch reads {name}: {meant} was probably meant"
        then = "" if meant in environ else f"; export {meant}={shlex.quote(environ[name])}"
        return Judgement("no effect", problem, f"unset {name}{then}")
    if "MPS" in name.upper():
        return Judgement("no effect", f"no torch is known to read {name}", f"unset {name}")
    return Judgement("not about MPS, so mpskit does not judge it")


def _ratio(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    name, text = variable.name, environ[variable.name]
    ratio = read_ratio(text)
    fix = f"unset {name}"
    if ratio is None:
        effect = "no limit at all" if name == HIGH else "no garbage collection"
        return Judgement(
            effect, f"{text!r} is not a number, which torch reads as 0.0: {effect}", fix
        )
    if not 0 <= ratio <= HIGHEST:
        problem = f"torch fails at the first use of MPS: invalid {_side(name)} watermark ratio"
        hint = " (mpskit.configure_environment sets a share of the RAM)" if "%" in text else ""
        return Judgement("an error", f"{problem} {ratio:g}; it must be from 0.0 to 2.0{hint}", fix)
    if not is_whole(text, ratio=True):
        return Judgement(f"{ratio:g}", f"torch reads {text!r} as {ratio:g} and drops the rest", fix)
    return _high(ratio, environ) if name == HIGH else _low(ratio, environ)


def _side(name: str) -> str:
    return "high" if name == HIGH else "low"


def _high(ratio: float, environ: Mapping[str, str]) -> Judgement:
    if ratio == 0:
        return Judgement("no limit: macOS swaps, or kills the process, where PyTorch would raise")
    if LOW not in environ and ratio < DEFAULT_LOW:
        return Judgement(
            f"an error instead of a limit of {ratio:g} times the working set",
            f"torch fails at the first use of MPS: invalid low watermark ratio {DEFAULT_LOW}. "
            f"A high ratio below {DEFAULT_LOW} needs a low one that is not above it",
            f"export {LOW}={low_for(ratio)}",
        )
    return Judgement(f"a limit of {ratio:g} times the recommended working set")


def low_for(high: float) -> str:
    """Return the low ratio for ``high`` in the proportion of torch's defaults."""
    return ratio_text(high * DEFAULT_LOW / DEFAULT_HIGH)


def ratio_text(ratio: float) -> str:
    """Return a ratio as a variable's value: six decimals, rounded down so that no limit grows."""
    return f"{math.floor(ratio * 10**6) / 10**6:.6f}".rstrip("0").rstrip(".") or "0"


def _low(ratio: float, environ: Mapping[str, str]) -> Judgement:
    high = read_ratio(environ[HIGH]) or 0.0 if HIGH in environ else DEFAULT_HIGH
    if ratio > (high or HIGHEST):
        return Judgement(
            "an error",
            f"torch fails at the first use of MPS: invalid low watermark ratio {ratio:g}. It must "
            f"not be above the high one, which is {high:g}",
            f"export {LOW}={low_for(high)}",
        )
    if ratio == 0:
        return Judgement("no garbage collection of cached memory before the limit")
    return Judgement(f"garbage collection from {ratio:g} times the recommended working set")


def _number(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    name, text = variable.name, environ[variable.name]
    number = read_int(text)
    if number is None:
        problem = f"{text!r} {int_problem(text)}: `import torch` itself fails on a Mac (std::stoi)"
        return Judgement("an error", problem, f"export {name}=1")
    effect = "on" if number else "off"
    if not is_whole(text, ratio=False):
        return Judgement(effect, f"torch reads {text!r} as {number}", f"export {name}={number}")
    return Judgement(effect)


def _bits(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    text = environ[variable.name]
    try:
        number = int(text, 0)
    except ValueError:
        problem = f"{text!r} is not a number"
        return Judgement("off, or what its first digits say", problem, f"unset {variable.name}")
    return Judgement(f"bits {number:#x}" if number else "off")


def _nonzero(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    name, text = variable.name, environ[variable.name]
    if text.strip().lower() in ("", "false", "no", "off"):
        return Judgement("on", f"any value but 0 turns {name} on, {text!r} too", f"unset {name}")
    return Judgement("off" if text == "0" else "on")


def _presence(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    name, text = variable.name, environ[variable.name]
    if text.strip().lower() in ("", "0", "false", "no", "off"):
        problem = f"{name} is on whenever it is set, {text!r} too"
        return Judgement("on", problem, f"unset {name}")
    return Judgement("on")


def _choice(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    name, text = variable.name, environ[variable.name]
    if text not in variable.choices:
        problem = f"torch ignores {text!r}: it must be one of {', '.join(variable.choices)}"
        return Judgement("no effect", problem, f"unset {name}")
    return Judgement(text)


def _text(variable: Variable, environ: Mapping[str, str]) -> Judgement:
    return Judgement(f"set to {environ[variable.name]!r}")


def _none(variable: Variable, _environ: Mapping[str, str]) -> Judgement:
    problem = f"{variable.name} {variable.meaning}: no released torch reads it"
    return Judgement("no effect", problem, f"unset {variable.name}")


_PARSERS: Mapping[str, Callable[[Variable, Mapping[str, str]], Judgement]] = {
    "ratio": _ratio,
    "number": _number,
    "bits": _bits,
    "nonzero": _nonzero,
    "presence": _presence,
    "choice": _choice,
    "text": _text,
    "none": _none,
}
