"""Why a plan chose what it chose: one sentence for each choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mpskit._base.sizes import format_bytes
from mpskit.backends.precisions import PRECISIONS
from mpskit.plan.defaults import Optimizer, defaults, missing_quantization
from mpskit.plan.jobs import Job
from mpskit.plan.places import Place
from mpskit.plan.search import Found, Search
from mpskit.plan.settings import Setting

__all__ = ["reasons"]


def reasons(
    job: Job,
    place: Place,
    search: Search,
    taken: Found,
    beside: Sequence[Found],
    optimizer: Optimizer,
    *,
    told: bool,
    fixed: Mapping[str, Any],
) -> dict[str, str]:
    """Return the reasons by the plan's field.

    Args:
        job: the model.
        place: the machine.
        search: what was compared.
        taken: what was chosen.
        beside: every way with the rows and the length of what was chosen.
        optimizer: torch's for the one that was asked for.
        told: whether the user said what to train.
        fixed: fields of the setting that the user decided, of which nothing is told but the costs.
    """
    setting = taken.setting
    found = {
        "method": "" if told else _method(job, setting),
        "precision": _precision(place, beside, setting, told="precision" in fixed),
        "checkpointing": _checkpointing(beside, setting),
        "batch_size": _batch(search, taken),
        "seq_len": _length(job, taken),
        "optimizer": optimizer.reason or _optimizer(setting),
        "quantization": "" if "base" in fixed else _quantization(place, setting),
        "sharding": _sharding(beside, setting),
    }
    return {name: text for name, text in found.items() if text}


def _method(job: Job, setting: Setting) -> str:
    least = defaults("lora")["parameters"]
    large = f"{least / 1e6:.0f} million parameters"
    if setting.rank is not None and job.parameters is None:
        return "adapters: the config does not say its parameters; method='full' trains every weight"
    if setting.rank is not None and job.parameters < least:
        return "adapters: no way to train every weight fits, with what is fixed"
    if setting.rank is not None:
        return f"adapters, as is usual from {large} on: their gradients and states are small"
    return f"every weight is trained: the model has less than {large}" if job.adapts else ""


def _precision(place: Place, beside: Sequence[Found], setting: Setting, *, told: bool) -> str:
    """Say what it saves or costs beside the other ways at the same rows and length."""
    needs = {
        found.setting.kind: found.verdict.needed_bytes
        for found in beside
        if (found.setting.checkpointing, found.setting.optimizer, found.setting.sharding)
        == (setting.checkpointing, setting.optimizer, setting.sharding)
    }
    others = [
        f"{format_bytes(needs[kind])} {words}" for kind, words in _KINDS.items() if kind in needs
    ]
    compared = f" ({', '.join(others)})" if len(others) > 1 else ""
    if told:
        return f"{setting.precision} is fixed{compared}"
    if setting.kind == "half":
        return (
            f"frozen weights are stored in {setting.base}{compared}; the adapters stay float32, so "
            "no update is lost"
        )
    if setting.kind == "mixed":
        advised = PRECISIONS[setting.precision][1] == place.precision.autocast_dtype
        why = place.precision.reasons[0].rstrip(".") if advised else "autocast"
        return f"{why}{compared}"
    copies = setting.rank is not None and needs.get("mixed", 0) > needs.get("fp32", 0)
    if setting.kind == "fp32" and copies:
        return f"float32{compared}: autocast adds half-precision copies of the frozen weights"
    return f"float32{compared}" if compared else ""


_KINDS = {
    "fp32": "in float32",
    "mixed": "with autocast",
    "half": "with a half-precision base",
    "int8": "with an 8-bit base",
    "nf4": "with a 4-bit base",
}


def _checkpointing(beside: Sequence[Found], setting: Setting) -> str:
    if not setting.checkpointing:
        return ""
    plain = replace(setting, checkpointing=False)
    without = [found.verdict.needed_bytes for found in beside if found.setting == plain]
    kept = f" ({format_bytes(without[0])} without)" if without else ""
    return f"activations are computed again in the backward pass{kept}: one more forward pass"


def _batch(search: Search, taken: Found) -> str:
    rows, sizes = taken.setting.rows, search.sizes
    if len(sizes) == 1 or rows == sizes[-1]:
        return ""
    if taken.verdict.answer != "fits":
        return "the smallest there is"
    return (
        f"the largest of {', '.join(map(str, sizes))} that fits; accumulation keeps the effective "
        f"batch at {search.effective}"
    )


def _length(job: Job, taken: Found) -> str:
    setting = taken.setting
    if setting.seq_len is None or len(job.lengths) == 1 or setting.seq_len == job.lengths[0]:
        return ""
    if not taken.verdict:
        return "the shortest rows that are tried"
    refused = "do not fit with a tenth to spare, or the model has no positions for them"
    return f"longer rows than {setting.seq_len} tokens {refused}"


def _optimizer(setting: Setting) -> str:
    if setting.optimizer == "adafactor":
        return "Adafactor keeps a row and a column of sums for a weight instead of two copies"
    return ""


def _sharding(beside: Sequence[Found], setting: Setting) -> str:
    """Say why each process has the whole model, or a share of it."""
    if setting.sharding is None:
        return ""
    needs = {
        found.setting.sharding: format_bytes(found.verdict.needed_bytes)
        for found in beside
        if replace(found.setting, sharding=None) == replace(setting, sharding=None)
    }
    if setting.sharding == "fsdp":
        whole = f" ({needs['ddp']} with DistributedDataParallel)" if "ddp" in needs else ""
        return (
            f"the whole model does not fit in each process{whole}: fully_shard keeps one part in "
            f"{setting.world_size} of weights, gradients and states, and sends each layer's "
            "weights in every pass"
        )
    shares = f" ({needs['fsdp']} with fully_shard)" if "fsdp" in needs else ""
    return f"the whole model fits in each process{shares}: only gradients are sent"


def _quantization(place: Place, setting: Setting) -> str:
    if setting.kind in ("int8", "nf4"):
        return "nothing wider fits; the weights are unpacked in each pass, which takes time"
    package = missing_quantization(place.device)
    if package is None or setting.rank is None:
        return ""
    return f"none; 4-bit weights would need pip install '{package}'"
