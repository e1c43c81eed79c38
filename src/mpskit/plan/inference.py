"""``plan_inference``: the weights' dtype and the context with which a model runs on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import check_count
from mpskit._base.sizes import format_bytes
from mpskit.backends.precisions import PRECISIONS
from mpskit.errors import ArgumentError
from mpskit.plan.common import common_fields, decided, one_of
from mpskit.plan.defaults import quantizations
from mpskit.plan.jobs import Job, Model, generation_job, is_config, module_job
from mpskit.plan.places import Place, find_place
from mpskit.plan.result import InferencePlan
from mpskit.plan.search import Found, Search
from mpskit.plan.settings import (
    PREFERENCES,
    QUANTIZED,
    Prefer,
    Setting,
    inference_ways,
)
from mpskit.plan.times import step_time

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike
    from mpskit.host.named import MachineLike
    from mpskit.memory import MemoryBudget

__all__ = ["plan_inference"]


def plan_inference(
    model_or_config: Model,
    *,
    batch: Any = None,
    machine: MachineLike | None = None,
    device: DeviceLike | None = None,
    budget: MemoryBudget | int | str | None = None,
    context: int | None = None,
    prefer: Prefer = "speed",
    fixed: Mapping[str, Any] | None = None,
) -> InferencePlan:
    """Return with which weights and which context a model runs on a machine.

    A transformer's config is estimated as ``generate()`` runs it: a prompt of half the context,
    then one token after the other until the key-value cache holds the context.

    Args:
        model_or_config: a config as for :func:`mpskit.estimate_from_config`, or a module, its
            class, or a callable that makes it.
        batch: for a config, the rows (1 by default); for a module, its batch: tensors or
            ``TensorSpec``, or a callable that makes one of as many rows as it is given.
        machine: a name (``m1-16gb``, ``T4``), a ``Machine`` or a ``Host``; None is this machine.
        device: ``mps``, ``cuda`` or ``cpu``; None is the machine's own.
        budget: bytes, a size such as ``"12GiB"`` or a ``MemoryBudget``, instead of the machine's.
        context: tokens of prompt and answer together; None takes the longest of 4096, 2048, 1024
            and 512 that fits.
        prefer: ``speed`` stores weights in what the device computes in fastest, ``fidelity`` in
            float32 where it fits.
        fixed: settings that are decided: ``precision``, ``base``.

    Raises:
        ArgumentError: a value that cannot be used, or an unknown model.
        ArgumentTypeError: an argument of the wrong type.
        UnknownMachineError: no machine has that name.
        EstimateError: no setting can be estimated.
    """
    one_of("prefer", prefer, PREFERENCES)
    settled = decided(fixed, ("precision", "base"))
    place = find_place(machine, device, budget)
    if is_config(model_or_config):
        rows = 1 if batch is None else batch
        check_count("batch", rows, least=1)
        job = generation_job(model_or_config, place.device, context=context)
    else:
        if context is not None:
            raise ArgumentError("context= is for a transformer's config", given=context)
        rows, job = 1, module_job(model_or_config, batch, place.device, training=False)
    search = Search(job.estimates, place.usable_bytes, (rows,), rows)
    offered = inference_ways(
        Setting(optimizer="none"),
        half=_half(place),
        quantized=quantizations(place.device) if job.shape is not None else (),
        prefer=prefer,
        fixed=settled,
    )
    taken = search.best(offered, job.lengths)
    return _plan(job, place, search, taken, search.beside(offered, taken), settled)


def _half(place: Place) -> str | None:
    """Return what the device computes in fastest; a CPU stores bfloat16 where float32 is large."""
    return "bf16" if place.device == "cpu" else place.fastest


def _plan(
    job: Job,
    place: Place,
    search: Search,
    taken: Found,
    beside: list[Found],
    fixed: Mapping[str, Any],
) -> InferencePlan:
    setting = taken.setting
    cache = _cache_bytes(job, setting)
    return InferencePlan(
        **common_fields(job, place, search, taken, beside),
        context=setting.seq_len or 0,
        cache_bytes=cache,
        step=step_time(job, taken, place),
        reasons=_reasons(place, setting, beside, fixed, decodes=cache > 0),
        notes=(*place.notes, *taken.estimate.notes),
    )


def _cache_bytes(job: Job, setting: Setting) -> int:
    """Return the keys and values of every layer, in the dtype of the arithmetic."""
    shape = job.shape
    if shape is None or shape.columns["stacks"] != "decoder":
        return 0
    itemsize = 2 if PRECISIONS[setting.precision][0] else 4
    numbers = 2 * sum(shape.layers) * shape.kv_heads * shape.head_width
    return numbers * setting.rows * (setting.seq_len or 0) * itemsize


def _reasons(
    place: Place,
    setting: Setting,
    beside: list[Found],
    fixed: Mapping[str, Any],
    *,
    decodes: bool,
) -> dict[str, str]:
    """Return the reasons by the plan's field; of what the user fixed nothing but the costs."""
    needs = {one.setting.words: format_bytes(one.verdict.needed_bytes) for one in beside}
    others = ", ".join(f"{need} in {words}" for words, need in needs.items())
    compared = f" ({others})" if len(needs) > 1 else ""
    precision = f"{setting.words}{compared}" if compared else ""
    if "precision" in fixed:
        precision = f"{setting.precision} is fixed{compared}"
    elif setting.kind == "half" and place.device != "cpu" and decodes:
        precision += ": decoding waits for the weights to be read, and these are half as large"
    found = {"precision": precision}
    if setting.kind in QUANTIZED and "base" not in fixed:
        found["quantization"] = "nothing wider fits; the weights are unpacked for each token"
    return {name: text for name, text in found.items() if text}
