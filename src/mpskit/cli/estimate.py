"""``mpskit estimate MODEL``: how much memory a model needs, before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpskit.backends.kinds import ESTIMATED
from mpskit.backends.precisions import BASES, PRECISIONS, precision_name
from mpskit.cli.estimate_job import Job, read_job, what_would_help
from mpskit.cli.json_output import print_json
from mpskit.cli.output import (
    check_folder,
    completing,
    machines_and_cards,
    print_rows,
    print_wrapped,
    progress,
)
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.estimate import MemoryEstimate

__all__ = ["add_arguments", "run"]

_BATCH_HELP = (
    "for FILE.py:NAME, the batch: name=dtype[sizes] for arguments by name, or dtype[sizes] by "
    "position, such as input_ids=int64[1,512] labels=int64[1,512]"
)
_EXAMPLES = """examples:
  mpskit estimate --list
  mpskit estimate Qwen/Qwen2.5-7B --lora 8 \\
      --precision bf16 --machine m1-16gb
  mpskit estimate config.json --batch-size 4 --seq-len 1024
  mpskit estimate train.py:make_model \\
      --batch 'float32[32,784]' 'int64[32]' \\
      --optimizer sgd:lr=0.1,momentum=0.9

FILE.py is run, as `python FILE.py` would run it, and NAME
is taken from it. The exit code is 1 when the model does not
fit the machine."""
_TOP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit estimate MODEL [options]"
    parser.epilog = _EXAMPLES
    model = parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a bundled model's name, a config.json, or FILE.py:NAME: a callable, class or model "
        "in a Python file, which is run",
    )
    completing(model, _model_names)
    parser.add_argument("--list", action="store_true", help="print the bundled models and exit")
    parser.add_argument("--batch", nargs="+", metavar="TENSOR", help=_BATCH_HELP)
    parser.add_argument("--batch-size", type=int, metavar="N", help="for a config: rows (1)")
    parser.add_argument("--seq-len", type=int, metavar="N", help="for a config: tokens a row (512)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="for a config: train adapters")
    parser.add_argument(
        "--base",
        choices=BASES,
        metavar="NAME",
        help=f"for a config: the frozen weights' dtype, {', '.join(BASES)} (the precision's)",
    )
    parser.add_argument(
        "--checkpointing",
        action="store_const",
        const=True,
        help="for a config: compute activations again instead of keeping them",
    )
    parser.add_argument(
        "--step", metavar="NAME", help="for FILE.py:NAME: a function of (model, batch) in that file"
    )
    parser.add_argument(
        "--cache-len", type=int, metavar="N", help="for a config: generate until N tokens a row"
    )
    parser.add_argument("--inference", action="store_true", help="no gradients and no optimizer")
    parser.add_argument("--generate", type=int, metavar="N", help="inference: decode N tokens")
    parser.add_argument(
        "--optimizer",
        metavar="NAME[:KEY=VALUE,...]",
        default="adamw",
        help="of torch.optim, or none, with its arguments: adamw:foreach=false (adamw)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="NAME",
        help=f"{', '.join(PRECISIONS)}, or Lightning's name for one (fp32)",
    )
    parser.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="batches for each optimizer step (1)"
    )
    parser.add_argument(
        "--device",
        choices=ESTIMATED,
        metavar="NAME",
        help=f"the target: {', '.join(ESTIMATED)} (the machine's own)",
    )
    machine = parser.add_argument(
        "--machine", metavar="NAME", help="the target, and whether it fits: m1-16gb, T4, ..."
    )
    completing(machine, machines_and_cards)
    parser.add_argument("--plot", metavar="PATH", help="draw the timeline (needs mpskit[plot])")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate; 1 when it does not fit the machine."""
    if arguments.list:
        return _list(as_json=arguments.json)
    _check(arguments)
    arguments.precision = precision_name(arguments.precision)
    job = read_job(arguments, progress)
    progress("tracing the step")
    estimate = job.estimate()
    verdict = estimate.fits(arguments.machine) if arguments.machine else None
    helps = _help(job, arguments) if verdict is not None and not verdict else ()
    progress("")
    if arguments.json:
        payload = estimate.model_dump(mode="json")
        answer = verdict.model_dump(mode="json") if verdict is not None else None
        extra = {"machine": arguments.machine, "verdict": answer, "would_help": list(helps)}
        print_json("estimate", {**payload, **extra})
    else:
        _show(job, estimate, f"{arguments.machine}: {verdict}" if verdict is not None else None)
        for line in helps:
            print_wrapped(f"  {line}")
    _plot(arguments, estimate)
    return 1 if verdict is not None and not verdict else 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it.

    Raises:
        ArgumentError: no model, an unknown machine or no such device there, or a plot that cannot
            be written.
    """
    if arguments.model is None:
        raise ArgumentError("name a model: a bundled one (--list), a config.json or FILE.py:NAME")
    if arguments.machine is not None:
        from mpskit.host.named import as_host, host_device

        host_device(as_host(arguments.machine), arguments.device)
    if arguments.plot is not None:
        check_folder(arguments.plot)


def _help(job: Job, arguments: argparse.Namespace) -> tuple[str, ...]:
    progress("looking for what would fit")
    return tuple(what_would_help(job, arguments.machine))


def _show(job: Job, estimate: MemoryEstimate, verdict: str | None) -> None:
    print_wrapped(job.title)
    print_wrapped(str(estimate))
    uses = [use for use in estimate.top_modules if use.module][:_TOP]
    if uses:
        from mpskit._base.sizes import format_bytes

        held = ", ".join(f"{use.module} {format_bytes(use.bytes_at_peak)}" for use in uses)
        print_wrapped(f"most at the peak: {held}")
    if verdict is not None:
        print_wrapped(verdict)


def _plot(arguments: argparse.Namespace, estimate: MemoryEstimate) -> None:
    """Draw last: a picture that fails takes no table with it."""
    if arguments.plot is None:
        return
    estimate.plot(arguments.plot, budget=arguments.machine)
    if not arguments.json:
        print_wrapped(f"timeline drawn in {arguments.plot}")


def _list(*, as_json: bool) -> int:
    from mpskit.estimate.models import bundled_models

    models = bundled_models()
    if as_json:
        print_json("estimate", {"models": models})
        return 0
    rows = [
        (name, f"{config['parameters'] / 1e9:.2f}B", config["model_type"])
        for name, config in models.items()
    ]
    print_rows(("model", "weights", "family"), rows)
    return 0


def _model_names() -> Iterable[str]:
    from mpskit.estimate.models import bundled_models

    return bundled_models()
