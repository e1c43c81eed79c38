"""What ``mpskit estimate`` is asked to estimate: a config or a file's model, and its variations."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.sizes import format_bytes
from mpskit.cli.user_file import run_file
from mpskit.errors import ArgumentError, MpskitError

if TYPE_CHECKING:
    from mpskit.estimate import MemoryEstimate

__all__ = ["Job", "read_batch", "read_job", "what_would_help"]

_BATCH_SIZE, _SEQ_LEN, _RANK = 1, 512, 8
# Options that only one sort of model has.
_OF_CONFIG = ("batch_size", "seq_len", "lora", "base", "checkpointing", "cache_len")
_OF_FILE = ("batch", "step", "generate", "plot")


@dataclass(frozen=True)
class Job:
    """A model and how it is run.

    Attributes:
        options: the command's arguments, each with a value that is used.
        config: a bundled model's name or a config's path; None for a file's model.
        names: what the file defines; empty for a config.
    """

    options: argparse.Namespace
    config: str | None
    names: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Return what is estimated, in one line."""
        options = self.options
        doing = "inference" if _inference(options) else f"training with {options.optimizer}"
        if self.config is None:
            return f"{options.model}, {doing}"
        lora = f", LoRA of rank {options.lora}" if options.lora is not None else ""
        lora += f" on a {options.base} base" if options.base is not None else ""
        rows = "1 row" if options.batch_size == 1 else f"{options.batch_size} rows"
        until = f", until {options.cache_len}" if options.cache_len is not None else ""
        return f"{self.config}, {doing}{lora}: {rows} of {options.seq_len} tokens{until}"

    def changed(self, **options: Any) -> Job:
        """Return the same job with other options."""
        other = copy(self.options)
        vars(other).update(options)
        return Job(other, self.config, self.names)

    def estimate(self) -> MemoryEstimate:
        """Return the estimate.

        Raises:
            ArgumentError: an option has a value that cannot be used.
            EstimateError: the model cannot be traced.
        """
        return _of_file(self) if self.config is None else _of_config(self.config, self.options)


def read_job(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Job:
    """Find the model that the command's arguments name; a file is run.

    Raises:
        ArgumentError: there is no such model, or an option that is for the other sort of model.
    """
    options = copy(arguments)
    path, colon, name = arguments.model.rpartition(":")
    if colon and (path.endswith(".py") or Path(path).is_file()):
        _refuse(arguments, _OF_CONFIG, "a config, and this is a Python file")
        if not arguments.batch:
            raise ArgumentError(
                "say what the batch is: --batch 'int64[1,512]', or by name "
                "'input_ids=int64[1,512]'",
                given=arguments.model,
            )
        read_batch(arguments.batch)
        progress(f"running {path}")
        return Job(options, None, run_file(path, name, arguments.step))
    _refuse(arguments, _OF_FILE, "FILE.py:NAME, and this is a config")
    options.batch_size = _BATCH_SIZE if arguments.batch_size is None else arguments.batch_size
    options.seq_len = _SEQ_LEN if arguments.seq_len is None else arguments.seq_len
    return Job(options, _config(arguments.model), {})


def what_would_help(job: Job, machine: str) -> Iterator[str]:
    """Yield, for a job that does not fit, what would: each is estimated, none is guessed."""
    found = False
    for words, options in _variations(job):
        try:
            estimate = job.changed(**options).estimate()
        except MpskitError:  # such as a model that has no such precision
            continue
        verdict = estimate.fits(machine)
        if verdict:
            found = True
            yield f"{words} would {_fitting(verdict.answer)}: {format_bytes(verdict.needed_bytes)}"
    larger = _smallest_machine(job.estimate())
    if larger is not None:
        yield f"the smallest Mac that it fits as it is: {larger}"
    elif not found:
        yield "no Mac that is sold has the memory for it"


def _fitting(answer: str) -> str:
    return "fit" if answer == "fits" else "just fit"


def _variations(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    options = job.options
    low = options.precision == "fp32"
    if job.config is not None and options.batch_size > 1:
        yield "--batch-size 1", {"batch_size": 1}
    if job.config is not None and options.seq_len > 256:
        yield f"--seq-len {options.seq_len // 2}", {"seq_len": options.seq_len // 2}
    if _inference(options):
        return
    if job.config is not None and not options.checkpointing:
        yield "--checkpointing", {"checkpointing": True}
    if low:
        yield "--precision bf16", {"precision": "bf16"}
    if options.optimizer.partition(":")[0] != "sgd" and options.lora is None:
        yield "--optimizer sgd", {"optimizer": "sgd"}
    if job.config is None:
        return
    if options.lora is None:
        yield f"--lora {_RANK}", {"lora": _RANK}
    if low and options.base is None:
        lora = _RANK if options.lora is None else options.lora
        yield f"--lora {lora} --base bf16", {"lora": lora, "base": "bf16"}


def _smallest_machine(estimate: MemoryEstimate) -> str | None:
    from mpskit.host.machines import sold_macs

    for machine in sold_macs():
        if estimate.fits(machine).answer == "fits":
            return f"{machine.name}, {machine.ram_gib} GiB"
    return None


def _inference(options: argparse.Namespace) -> bool:
    generates = options.generate is not None or options.cache_len is not None
    return bool(options.inference or generates)


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ArgumentError(f"{option} is for {why}", given=getattr(arguments, name))


def _config(model: str) -> str:
    path = Path(model)
    if model.endswith(".json") or path.is_dir() or path.is_file():
        return model
    from mpskit.estimate.models import find_model

    return find_model(model)


def _of_config(config: str, options: argparse.Namespace) -> MemoryEstimate:
    from mpskit.estimate import estimate_from_config

    name, _, rest = options.optimizer.partition(":")
    optimizer = _optimizer(options.optimizer) if rest or name == "none" else name
    return estimate_from_config(
        config,
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        training=not _inference(options),
        lora=options.lora,
        base=options.base,
        precision=options.precision,
        optimizer=optimizer,
        accumulate=options.accumulate,
        checkpointing=bool(options.checkpointing),
        cache_len=options.cache_len,
        device=options.device,
        machine=options.machine,
    )


def _of_file(job: Job) -> MemoryEstimate:
    from mpskit.estimate import estimate_inference_memory, estimate_training_memory

    options = job.options
    model = job.names[options.model.rpartition(":")[2]]
    step = job.names[options.step] if options.step is not None else None
    batch = read_batch(options.batch)
    if _inference(options):
        return estimate_inference_memory(
            model,
            batch,
            step=step,
            generate=options.generate,
            device=options.device,
            machine=options.machine,
        )
    return estimate_training_memory(
        model,
        batch,
        step=step,
        optimizer=_optimizer(options.optimizer),
        precision=options.precision,
        accumulate=options.accumulate,
        device=options.device,
        machine=options.machine,
    )


def _optimizer(text: str) -> Any:
    """Return the optimizer of ``adamw:lr=1e-4,foreach=false``; None for ``none``.

    Raises:
        ArgumentError: torch.optim has no such class, or the class no such argument.
    """
    import torch

    name, _, rest = text.partition(":")
    if name == "none" and not rest:
        return None
    known = {key.lower(): cls for key, cls in vars(torch.optim).items() if _is_optimizer(cls)}
    cls = known.get(name.lower())
    if cls is None:
        raise ArgumentError(f"torch.optim has no {name!r}: one of {', '.join(known)}", given=text)
    chosen = dict(_argument(pair, text) for pair in rest.split(",") if pair.strip())
    allowed = [key for key in inspect.signature(cls).parameters if key != "params"]
    for key in chosen:
        if key not in allowed:
            raise ArgumentError(
                f"{cls.__name__} has no argument {key!r}: one of {', '.join(allowed)}", given=text
            )
    return functools.partial(cls, **chosen) if chosen else cls


def _is_optimizer(value: Any) -> bool:
    import torch

    optimizer = torch.optim.Optimizer
    return isinstance(value, type) and issubclass(value, optimizer) and value is not optimizer


def _argument(pair: str, text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in pair.partition("="))
    literal = {"true": "True", "false": "False", "none": "None"}.get(value.lower(), value)
    try:
        return key, ast.literal_eval(literal if equals else "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ArgumentError(
            f"{pair.strip()!r} is no argument of an optimizer: write KEY=VALUE, such as lr=1e-4 or "
            "foreach=false",
            given=text,
        ) from None


def read_batch(words: list[str]) -> Any:
    """Return a dict for ``name=dtype[sizes]`` words, else a tuple, or the one tensor itself."""
    from mpskit.estimate.specs import parse_spec

    named = [word.partition("=") for word in words]
    if all(name.isidentifier() and rest for name, _, rest in named):
        return {name: parse_spec(rest) for name, _, rest in named}
    tensors = tuple(parse_spec(word) for word in words)
    return tensors[0] if len(tensors) == 1 else tensors
