"""``mpskit plan MODEL``: settings with which a model trains or runs on a machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from mpskit.plan import InferencePlan, TrainingPlan
    from mpskit.plan.table import PlanTable

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit plan Qwen/Qwen2.5-0.5B --machine m1-16gb
  mpskit plan qwen2.5-1.5b --machine m1-16gb --seq-len 512 \\
      --samples 5000
  mpskit plan config.json --machine T4 --method full
  mpskit plan meta-llama/Llama-3.2-3B --machines all
  mpskit plan Qwen/Qwen2.5-7B --machine m3-max-64gb \\
      --inference

`mpskit estimate --list` names the bundled models. The exit
code is 1 when nothing fits."""
_TRAINING = ("seq_len", "effective_batch", "lora", "method", "stage", "samples", "optimizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit plan MODEL [options]"
    parser.epilog = _EXAMPLES
    model = parser.add_argument(
        "model", metavar="MODEL", help="a bundled model's name, a config.json, or its folder"
    )
    completing(model, _model_names)
    where = parser.add_mutually_exclusive_group()
    machine = where.add_argument(
        "--machine", metavar="NAME", help="a Mac or a CUDA card: m1-16gb, T4 (this machine)"
    )
    completing(machine, machines_and_cards)
    where.add_argument(
        "--machines", nargs="+", metavar="NAME", help="several, or all: a table over machines"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu instead of the machine's GPU")
    parser.add_argument("--budget", metavar="SIZE", help="memory to plan with, such as 12GiB")
    parser.add_argument("--batch", type=int, metavar="N", help="rows of a batch")
    parser.add_argument("--effective-batch", type=int, metavar="N", help="rows of a step (8)")
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens in a row (512 or less)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of that rank (8)")
    parser.add_argument("--method", choices=("auto", "lora", "full"), help="what to train (auto)")
    parser.add_argument(
        "--prefer", choices=("speed", "fidelity"), default="speed", help="what counts (speed)"
    )
    parser.add_argument("--precision", metavar="NAME", help="decided: fp32, bf16-mixed, ...")
    parser.add_argument("--base", metavar="DTYPE", help="decided: bf16, fp16, int8, nf4")
    parser.add_argument("--optimizer", metavar="NAME", help="of torch.optim or the trainer's name")
    parser.add_argument(
        "--stage", choices=("development", "test", "production"), help="3, 5 or 10 epochs"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="rows of the data, for times")
    parser.add_argument("--inference", action="store_true", help="run the model, not train it")
    parser.add_argument("--context", type=int, metavar="N", help="with --inference: tokens (4096)")
    parser.add_argument("--plot", metavar="PATH", help="draw the memory (needs mpskit[plot])")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; 1 when it does not fit."""
    if arguments.plot is not None:
        check_folder(arguments.plot)
    _check(arguments)
    progress("estimating the ways to do it")
    found = _table(arguments) if arguments.machines else _plan(arguments)
    progress("")
    if arguments.json:
        print_json("plan", found.model_dump(mode="json"))
    else:
        _show(found)
    if arguments.plot is not None:
        found.plot(Path(arguments.plot))
        if not arguments.json:
            print_wrapped(f"drawn in {arguments.plot}")
    return 0 if found else 1


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options of one sort of plan with the other."""
    wrong = _TRAINING if arguments.inference else ("context",)
    for name in wrong:
        if getattr(arguments, name) is not None:
            sort = "training" if arguments.inference else "--inference"
            raise ArgumentError(f"--{name.replace('_', '-')} is for {sort}", given=name)
    if arguments.machines and (arguments.inference or arguments.device or arguments.budget):
        raise ArgumentError(
            "--machines compares training on the machines' own devices and memory: leave "
            "--inference, --device and --budget away",
            given=arguments.machines,
        )


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``plan_training`` that are given."""
    names = _TRAINING if not arguments.inference else ("context",)
    given = {name: getattr(arguments, name) for name in (*names, "batch")}
    fixed = {name: getattr(arguments, name) for name in ("precision", "base")}
    fixed = {name: value for name, value in fixed.items() if value is not None}
    asked = {name: value for name, value in given.items() if value is not None}
    return {**asked, "prefer": arguments.prefer, "fixed": fixed or None}


def _plan(arguments: argparse.Namespace) -> TrainingPlan | InferencePlan:
    from mpskit.plan import plan_inference, plan_training

    plan: Any = plan_inference if arguments.inference else plan_training
    found: TrainingPlan | InferencePlan = plan(
        arguments.model,
        machine=arguments.machine,
        device=arguments.device,
        budget=arguments.budget,
        **_asked(arguments),
    )
    return found


def _table(arguments: argparse.Namespace) -> PlanTable:
    from mpskit.host.machines import sold_macs
    from mpskit.plan.table import plan_machines

    named = arguments.machines
    chosen = [one.name or "" for one in sold_macs()] if named == ["all"] else named
    return plan_machines(arguments.model, chosen, **_asked(arguments))


def _show(found: Any) -> None:
    from mpskit.plan.table import COLUMNS, PlanTable

    if not isinstance(found, PlanTable):
        print_wrapped(str(found))
        return
    print_wrapped(found.model)
    print_rows(COLUMNS, found.rows())
    least = found.smallest
    if least is not None:
        print_wrapped(f"the smallest machine for it: {least.machine}")


def _model_names() -> Any:
    from mpskit.estimate.models import bundled_models

    return bundled_models()
