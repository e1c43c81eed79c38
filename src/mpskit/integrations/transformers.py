"""A plan as transformers' ``TrainingArguments``, as a model's loading arguments, as a callback."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from mpskit._base.data import read_toml
from mpskit.backends.kinds import kind_of
from mpskit.backends.versions import older
from mpskit.integrations.distributed import distributed_backend
from mpskit.integrations.planned import AMP_NAMES, Planned, amp_name, package
from mpskit.integrations.watch import Watch

__all__ = ["apply_to", "callback", "model_kwargs", "to_training_arguments"]

# Each line is one decision: where the caller has made any of it, the plan's part is left away.
_DECISIONS = (
    ("use_cpu",),
    AMP_NAMES,
    ("per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"),
    ("activation_checkpointing", "gradient_checkpointing"),
    ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
)
# Names of transformers 4 that only chose the device, which the plan does.
_DEVICE_NAMES = ("no_cuda", "use_mps_device")
_LOADER = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
# With a plan that is only tight, the Trainer clears its cache this often: the library's own
# example of CacheKeeper. The callback clears when there is something to free.
_CLEAR_EVERY = 100


def apply_to(plan: Planned, kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return arguments for ``TrainingArguments``: the caller's, and the plan's for the rest.

    What the caller decides stays, except what cannot run on the plan's device: a bitsandbytes
    optimizer that needs CUDA and pinned memory are replaced, and ``no_cuda`` and ``use_mps_device``
    left away. Only names that the installed transformers has are added.

    Args:
        plan: a :class:`mpskit.TrainingPlan`.
        kwargs: the caller's own; not changed.

    Raises:
        MissingExtraError: transformers is not installed.
        DeviceUnavailableError: the plan is for several processes on a device without collectives.
    """
    arguments = package("transformers").TrainingArguments
    known = {field.name for field in dataclasses.fields(arguments)}
    own = {key: value for key, value in (kwargs or {}).items() if key not in _DEVICE_NAMES}
    own |= _replaced(plan, own)
    decided = {name for group in _DECISIONS if not own.keys().isdisjoint(group) for name in group}
    ours = {
        name: value
        for name, value in _arguments(plan, known)
        if name in known and name not in decided
    }
    return ours | own


def to_training_arguments(plan: Planned, **own: Any) -> Any:
    """Return ``TrainingArguments(**apply_to(plan, own))``.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return package("transformers").TrainingArguments(**apply_to(plan, own))


def _replaced(plan: Planned, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's arguments that cannot run on the device, as they can."""
    found: dict[str, Any] = {}
    names = read_toml("training_defaults.toml")["optimizers"]
    optim = getattr(own.get("optim"), "value", own.get("optim"))  # a str or transformers' enum
    if plan.device != "cuda" and optim in names["cuda_only"]:
        found["optim"] = names["trainer"][names["cuda_only"][optim]]
    if own.get("dataloader_pin_memory") and not kind_of(plan.device).pins:
        found["dataloader_pin_memory"] = False
    return found


def _arguments(plan: Planned, known: set[str]) -> Iterator[tuple[str, Any]]:
    amp = amp_name(plan)
    yield "use_cpu", plan.device == "cpu"
    yield from ((name, name == amp) for name in AMP_NAMES)
    yield "per_device_train_batch_size", plan.batch_size
    yield "per_device_eval_batch_size", plan.batch_size
    yield "gradient_accumulation_steps", plan.accumulate
    yield "learning_rate", plan.learning_rate
    yield "num_train_epochs", plan.epochs
    yield "optim", read_toml("training_defaults.toml")["optimizers"]["trainer"][plan.optimizer]
    yield "remove_unused_columns", True
    yield from _checkpointing(plan, known)
    yield from _loader(plan.loader)
    if plan.verdict == "tight" and kind_of(plan.device).caches:
        yield "torch_empty_cache_steps", _CLEAR_EVERY
    if plan.world_size > 1:
        yield "ddp_backend", distributed_backend(plan.device)


def _checkpointing(plan: Planned, known: set[str]) -> Iterator[tuple[str, Any]]:
    # transformers 5 warns of the old name, 4 does not know the new one.
    new = "activation_checkpointing"
    name = new if new in known else "gradient_checkpointing"
    yield name, plan.checkpointing
    if plan.checkpointing:
        # The reentrant kind needs inputs with gradients, which frozen embeddings do not give.
        yield f"{name}_kwargs", {"use_reentrant": False}


def _loader(loader: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in (*_LOADER, "multiprocessing_context"):
        if loader.get(name) is not None:
            yield f"dataloader_{name}", loader[name]


def model_kwargs(plan: Planned, **own: Any) -> dict[str, Any]:
    """Return arguments for ``from_pretrained``: dtype, attention, and quantization if planned.

    Raises:
        MissingExtraError: transformers is not installed, or bitsandbytes for a quantized plan.
    """
    import torch

    transformers = package("transformers")
    name = "torch_dtype" if older(transformers.__version__, "4.56") else "dtype"
    found: dict[str, Any] = {"attn_implementation": plan.attention}
    if plan.quantization is None:
        return found | {name: getattr(torch, plan.weights_dtype)} | own
    package("bitsandbytes")
    if plan.quantization == "int8":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=plan.quantization,
            bnb_4bit_compute_dtype=plan.autocast_dtype or "float32",
        )
    # Without a device_map transformers loads quantized weights onto the CPU of a Mac.
    place = {"quantization_config": config, "device_map": {"": plan.device}}
    return found | place | own


def callback(plan: Planned, **watched: Any) -> Any:
    """Return a ``TrainerCallback`` that watches the training of a plan.

    It keeps the machine awake, samples memory (``callback.monitor``) and empties the device's cache
    when a quarter of the memory lies idle. As a context manager around ``trainer.train()`` it also
    turns an out-of-memory error into :class:`mpskit.OutOfMemory` with ``next_plan``.

    Args:
        plan: a :class:`mpskit.TrainingPlan`.
        watched: ``interval``, ``every`` and ``above`` of :class:`~mpskit.integrations.watch.Watch`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return _callback_class()(plan, **watched)


@functools.cache
def _callback_class() -> Any:
    base: Any = package("transformers").TrainerCallback

    class PlanCallback(Watch, base):  # type: ignore[misc]  # a base known at run time only
        """Watches a Trainer; the rest is in ``Watch``."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.step()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.end()

    return PlanCallback
