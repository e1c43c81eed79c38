"""What a plan says: the settings, why each was chosen, what they need, and what else would fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.estimate.result import MemoryEstimate, Verdict
from mpskit.speed.step_time import StepTime, TimeRange

if TYPE_CHECKING:
    from mpskit.integrations.watch import Watch
    from mpskit.plan.settings import Setting

__all__ = [
    "Alternative",
    "CloudCard",
    "InferencePlan",
    "LoraPlan",
    "Option",
    "TrainingPlan",
    "alternative",
]

Answer = Literal["fits", "tight", "does-not-fit"]


class LoraPlan(Value):
    """Adapters, under peft's names.

    Attributes:
        rank: ``r`` of peft's ``LoraConfig``.
        alpha: ``lora_alpha``.
        dropout: ``lora_dropout``, a share.
        targets: ``target_modules``.
        task: ``task_type``, from the config's class; None where peft has no name for it.
    """

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]
    task: str | None = None


class Alternative(Value):
    """A way to run the step that was compared with the others.

    Attributes:
        words: what it is: ``bf16 base + checkpointing``.
        batch_size: rows: the most that fit, or the fewest where none does.
        seq_len: tokens in a row.
        needed_bytes: what it takes.
        answer: whether that fits.
        chosen: whether it became the plan.
    """

    words: str
    batch_size: int
    seq_len: int | None
    needed_bytes: int
    answer: Answer
    chosen: bool = False


class Option(Value):
    """Something else that would fit, estimated.

    Attributes:
        words: what to do.
        needed_bytes: what the job then takes.
        answer: ``fits`` or ``tight``.
        machine: the machine's name, where the option is another machine.
    """

    words: str
    needed_bytes: int
    answer: Answer
    machine: str | None = None

    def __str__(self) -> str:
        return f"{self.words}: {format_bytes(self.needed_bytes)}, {self.answer}"


class CloudCard(Value):
    """The same job on a CUDA card.

    Attributes:
        card: its name.
        answer: whether the job fits there.
        needed_bytes: what it takes there.
        step: seconds of one optimizer step there; None where no figure supports it, where it does
            not fit, and where no ``samples`` were told.
    """

    card: str
    answer: Answer
    needed_bytes: int
    step: StepTime | None = None

    def __str__(self) -> str:
        time = "" if self.step is None else f" ({self.step.step} a step)"
        return f"{self.card} {self.answer}{time}"


class _Plan(Value):
    """What plans of training and of inference share.

    Attributes:
        model: the model's name, or its class.
        machine: the machine's name; ``this machine`` for the one that planned.
        device: ``mps``, ``cuda`` or ``cpu``.
        verdict: ``fits``, ``tight`` or ``does-not-fit``.
        batch_size: rows of a batch.
        seq_len: tokens in a row; None for a model that is no transformer from a config.
        precision: weights and autocast by mpskit's name: ``fp32``, ``bf16``, ``bf16-mixed``.
        weights_dtype: the dtype of the weights that most of the memory holds: ``float32``,
            ``bfloat16``, ``float16``, ``int8`` or ``nf4``.
        autocast_dtype: None for no autocast.
        quantization: ``int8`` or ``nf4``; None for none.
        attention: transformers' ``attn_implementation``.
        needed_bytes: what the step takes on the device, caches included.
        usable_bytes: what the machine gives to it.
        estimate: the figures behind ``needed_bytes``.
        step: seconds of one step; None where no published figure supports one, or it does not fit.
        reasons: why, one sentence for each choice, by the field's name.
        compared: the ways that were compared.
        would_fit: what else would fit, for a plan that does not or only just.
        notes: what the plan rests on.
    """

    model: str
    machine: str
    device: str
    verdict: Answer
    batch_size: int
    seq_len: int | None = None
    precision: str = "fp32"
    weights_dtype: str = "float32"
    autocast_dtype: str | None = None
    quantization: str | None = None
    attention: str = "sdpa"
    needed_bytes: int
    usable_bytes: int
    estimate: MemoryEstimate
    step: StepTime | None = None
    reasons: Mapping[str, str] = {}
    compared: tuple[Alternative, ...] = ()
    would_fit: tuple[Option, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.verdict != "does-not-fit"

    @property
    def margin_bytes(self) -> int:
        """What is left of the machine's memory; negative where it or the heaps do not fit."""
        return self.usable_bytes - self.needed_bytes

    def plot(self, path: str | Path) -> Path:
        """Draw the memory of every way that was compared against the machine's limit.

        Args:
            path: the file; its suffix chooses the format.

        Raises:
            MissingExtraError: matplotlib is not installed (``pip install 'mpskit[plot]'``).
        """
        from mpskit.plan.plot import plot_plan

        return plot_plan(self, Path(path))

    def _verdict_line(self) -> str:
        left = format_bytes(abs(self.margin_bytes))
        if self.verdict == "tight" and self.margin_bytes < 0:  # as Verdict says it
            need, usable = format_bytes(self.needed_bytes), format_bytes(self.usable_bytes)
            return f"tight: the tensors fit {usable}, the allocator holds {need}: {left} more"
        margin = f"{left} left" if self.margin_bytes >= 0 else f"{left} too much"
        need, usable = format_bytes(self.needed_bytes), format_bytes(self.usable_bytes)
        return f"{self.verdict}: {need} of {usable} usable, {margin}"

    def _tail(self) -> list[str]:
        lines = [f"  {option}" for option in self.would_fit]
        return (["would fit:", *lines] if lines else []) + [f"note: {note}" for note in self.notes]


class TrainingPlan(_Plan):
    """How to train a model on a machine so that it fits; sizes in bytes.

    Attributes:
        method: ``lora`` trains adapters, ``full`` every weight.
        accumulate: batches for one optimizer step; ``batch_size x accumulate`` rows.
        checkpointing: whether to compute activations again in the backward pass.
        lora: the adapters; None for none.
        optimizer: a name in torch.optim, lower case.
        learning_rate: to start from.
        epochs: passes over the data.
        grad_scaler: whether float16 needs a ``GradScaler``.
        loader: arguments for ``DataLoader``.
        environment: variables to set before torch is imported.
        cap_bytes: for :func:`mpskit.limit_memory`: the step's need and a tenth.
        samples: rows of the data set, if they were told.
        world_size: processes that train together; the figures are those of each.
        sharding: ``ddp`` for the whole model in each of several processes
            (``DistributedDataParallel``), ``fsdp`` for a share in each (``fully_shard``).
        epoch: seconds of a pass over the data; None where that is not known.
        run: seconds of all epochs.
        cloud: the same job on CUDA cards.
        local: whether to train here, rather than on one of those.
        quick_run: rows of a first run on a part of the data.

    The attributes of the figures and the verdict are those of every plan (see ``mpskit.plan``).
    """

    method: Literal["lora", "full"]
    accumulate: int = 1
    checkpointing: bool = False
    lora: LoraPlan | None = None
    optimizer: str = "adamw"
    learning_rate: float
    epochs: int
    grad_scaler: bool = False
    loader: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}
    cap_bytes: int
    samples: int | None = None
    world_size: int = 1
    sharding: Literal["none", "ddp", "fsdp"] = "none"
    epoch: TimeRange | None = None
    run: TimeRange | None = None
    cloud: tuple[CloudCard, ...] = ()
    local: bool = True
    quick_run: int | None = None

    @property
    def effective_batch(self) -> int:
        """Rows that one optimizer step sees, of all processes together."""
        return self.batch_size * self.accumulate * self.world_size

    def smaller(self) -> TrainingPlan | None:
        """Return the next plan that needs less memory, with the same effective batch.

        It has half the rows or fewer, and at one row gradient checkpointing, if the model is known
        to have it. The figures stay: they are upper bounds of the new ones.

        Returns:
            The plan; None where nothing is left but a shorter sequence or a smaller model.
        """
        rows = self.batch_size * self.accumulate
        fewer = [size for size in range(1, self.batch_size // 2 + 1) if rows % size == 0]
        if fewer:
            changes: dict[str, Any] = {"batch_size": fewer[-1], "accumulate": rows // fewer[-1]}
            changes["loader"] = {**self.loader, "batch_size": fewer[-1]}
        elif not self.checkpointing and self.seq_len is not None:
            changes = {"checkpointing": True}
        else:
            return None
        note = f"after {self.batch_size} rows ran out of memory; their figures are upper bounds"
        return self.model_copy(update={**changes, "notes": (*self.notes, note)})

    def apply_to(self, kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return arguments for transformers' ``TrainingArguments``, with one's own kept.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        from mpskit.integrations.transformers import apply_to

        return apply_to(self, kwargs)

    def to_training_arguments(self, **own: Any) -> Any:
        """Return transformers' ``TrainingArguments``; ``own`` are more of its arguments.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        from mpskit.integrations.transformers import to_training_arguments

        return to_training_arguments(self, **own)

    def to_trainer_callback(self, **watched: Any) -> Any:
        """Return a callback for transformers' ``Trainer``; a context manager around ``train()``.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        from mpskit.integrations.transformers import callback

        return callback(self, **watched)

    def watch(self, **watched: Any) -> Watch:
        """Return a context manager for a loop of one's own, and what its callbacks do.

        In the body the machine is kept awake and memory sampled; ``step()`` after each optimizer
        step clears the cache when that is due; an out-of-memory error becomes
        :class:`mpskit.OutOfMemory` with ``next_plan``.

        Args:
            watched: arguments of ``mpskit.integrations.watch.Watch``.
        """
        from mpskit.integrations.watch import Watch

        return Watch(self, **watched)

    def to_model_kwargs(self, **own: Any) -> dict[str, Any]:
        """Return arguments for ``from_pretrained``: dtype, attention, quantization.

        Raises:
            MissingExtraError: transformers is not installed, or bitsandbytes where it is needed.
        """
        from mpskit.integrations.transformers import model_kwargs

        return model_kwargs(self, **own)

    def to_lightning(self, **own: Any) -> dict[str, Any]:
        """Return arguments for Lightning's ``Trainer``, with the plan's callback; ``own`` win.

        Raises:
            MissingExtraError: lightning is not installed.
        """
        from mpskit.integrations.lightning import to_lightning

        return to_lightning(self, **own)

    def to_accelerate(self, **own: Any) -> dict[str, Any]:
        """Return arguments for accelerate's ``Accelerator``; ``own`` win."""
        from mpskit.integrations.accelerate import to_accelerate

        return to_accelerate(self, **own)

    def to_peft(self, **own: Any) -> Any:
        """Return peft's ``LoraConfig``; ``own`` are more of its arguments.

        Raises:
            ArgumentError: the plan trains every weight.
            MissingExtraError: peft is not installed.
        """
        from mpskit.integrations.peft import to_peft

        return to_peft(self, **own)

    def __str__(self) -> str:
        rows = [
            ("train", self._training()),
            ("precision", self._numbers()),
            ("batch", self._batch()),
            ("memory", self._verdict_line()),
            ("time", self._time()),
            ("run", self._run()),
            ("cards", ", ".join(map(str, self.cloud))),
        ]
        lines = [f"{self.model} on {self.machine} ({self.device})"]
        lines += [f"  {name:<10}{text}" for name, text in rows if text]
        lines += [f"  {name}: {text}" for name, text in self.reasons.items()]
        return "\n".join([*lines, *self._tail()])

    def _training(self) -> str:
        if self.lora is None:
            return f"every weight, {self.optimizer}, learning rate {self.learning_rate:g}"
        return (
            f"LoRA of rank {self.lora.rank} (alpha {self.lora.alpha}, dropout "
            f"{self.lora.dropout:g}) on {', '.join(self.lora.targets)}; {self.optimizer}, "
            f"learning rate {self.learning_rate:g}, {self.epochs} epochs"
        )

    def _numbers(self) -> str:
        mixed = f", autocast to {self.autocast_dtype}" if self.autocast_dtype else ", no autocast"
        again = ", gradient checkpointing" if self.checkpointing else ""
        return f"{self.weights_dtype} weights{mixed}{again}"

    def _batch(self) -> str:
        tokens = f" of {self.seq_len} tokens" if self.seq_len is not None else ""
        fleet = f" x {self.world_size} processes" if self.world_size > 1 else ""
        fleet += f" ({self.sharding.upper()})" if fleet else ""
        return (
            f"{_rows(self.batch_size)}{tokens} x {self.accumulate} accumulated{fleet} = "
            f"{_rows(self.effective_batch)} a step"
        )

    def _time(self) -> str:
        if self.step is None:
            return ""
        held = f"such ranges held {self.step.coverage:.0%} of {self.step.rows} published times"
        return f"{self.step.step} an optimizer step, most of it {self.step.bound}; {held}"

    def _run(self) -> str:
        if self.epoch is None or self.run is None:
            return ""
        where = "here" if self.local else "better on a card"
        few = self.quick_run is not None and self.quick_run < (self.samples or 0)
        first = f"; try {self.quick_run} rows first" if few else ""
        return (
            f"{self.epoch} an epoch of {self.samples} rows, {self.run} for {self.epochs}: "
            f"{where}{first}"
        )


class InferencePlan(_Plan):
    """How to run a model on a machine so that it fits; sizes in bytes.

    Attributes:
        context: tokens that the KV cache holds at the end: the prompt and what is generated.
        cache_bytes: what the cache takes then.

    The other attributes are those of every plan (see ``mpskit.plan``).
    """

    context: int
    cache_bytes: int

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.machine} ({self.device})",
            f"  weights   {self.weights_dtype}",
            f"  batch     {self._batch()}",
            f"  memory    {self._verdict_line()}",
        ]
        if self.step is not None:
            what = "a token at the end of the context" if self.cache_bytes else "a pass"
            lines.append(f"  time      {self.step.step} {what}")
        lines += [f"  {name}: {text}" for name, text in self.reasons.items()]
        return "\n".join([*lines, *self._tail()])

    def _batch(self) -> str:
        rows = _rows(self.batch_size)
        if not self.context:
            return rows
        cache = f" ({format_bytes(self.cache_bytes)} of cache)" if self.cache_bytes else ""
        return f"{rows}, a context of {self.context} tokens{cache}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def alternative(setting: Setting, verdict: Verdict, *, chosen: bool) -> Alternative:
    """Return a compared way as the plan shows it."""
    return Alternative(
        words=setting.words,
        batch_size=setting.rows,
        seq_len=setting.seq_len,
        needed_bytes=verdict.needed_bytes,
        answer=verdict.answer,
        chosen=chosen,
    )
