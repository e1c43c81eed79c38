"""What plans of training and of inference share: settings that are decided, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpskit._base.arguments import shown, wrong_type
from mpskit.backends.precisions import BASES, PRECISIONS, dtype_of, precision_name
from mpskit.errors import ArgumentError
from mpskit.plan.jobs import Job
from mpskit.plan.options import options
from mpskit.plan.places import Place
from mpskit.plan.result import alternative
from mpskit.plan.search import Found, Search
from mpskit.plan.settings import QUANTIZED

__all__ = ["common_fields", "decided", "one_of"]


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless a value is one of those that are allowed.

    Raises:
        ArgumentError: it is not.
    """
    if value not in allowed:
        raise ArgumentError(
            f"{name} is one of {', '.join(allowed)}, not {shown(value)}", given=value
        )


def decided(
    fixed: Mapping[str, Any] | None, allowed: Sequence[str], **named: Any
) -> dict[str, Any]:
    """Return the settings that the user has decided, from ``fixed`` and from arguments.

    Args:
        fixed: by name.
        allowed: the names.
        named: arguments of the same names; None where nothing is decided.

    Raises:
        ArgumentError: a name that is not allowed, two values for one, or an unknown precision.
        ArgumentTypeError: ``fixed`` is no mapping.
    """
    if fixed is not None and not isinstance(fixed, Mapping):
        raise wrong_type("fixed", "a mapping such as {'precision': 'fp32'}", fixed)
    found = dict(fixed or {})
    for name in found:
        one_of("a fixed setting", name, allowed)
    for name, value in named.items():
        if value is None:
            continue
        if found.get(name, value) != value:
            raise ArgumentError(
                f"{name} is {shown(value)} and fixed as {shown(found[name])}", given=value
            )
        found[name] = value
    if "precision" in found:
        found["precision"] = precision_name(found["precision"])
    if found.get("base") is not None:
        one_of("base", found["base"], tuple(BASES))
    return found


def common_fields(
    job: Job,
    place: Place,
    search: Search,
    taken: Found,
    beside: Sequence[Found],
    *,
    advise: bool = True,
) -> dict[str, Any]:
    """Return the fields of a plan that say where, with what, and whether it fits.

    Args:
        job: the model.
        place: the machine.
        search: what was tried.
        taken: what was chosen.
        beside: every way with the rows and the length of what was chosen.
        advise: whether to look for what else would fit, where this does not.
    """
    setting, verdict = taken.setting, taken.verdict
    leanest = search.leanest() or taken
    wanting = advise and verdict.answer != "fits"
    return {
        "model": job.name,
        "machine": place.name,
        "device": place.device,
        "verdict": verdict.answer,
        "batch_size": setting.rows,
        "seq_len": setting.seq_len,
        "precision": setting.precision,
        "weights_dtype": dtype_of(setting.base or setting.precision),
        "autocast_dtype": PRECISIONS[setting.precision][1],
        "quantization": setting.base if setting.base in QUANTIZED else None,
        "needed_bytes": verdict.needed_bytes,
        "usable_bytes": place.usable_bytes,
        "estimate": taken.estimate,
        "compared": tuple(
            alternative(one.setting, one.verdict, chosen=one.setting == setting) for one in beside
        ),
        "would_fit": tuple(options(job, place, leanest)) if wanting else (),
    }
