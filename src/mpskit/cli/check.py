"""``mpskit check``: are this machine's results right, or a model's on it?"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import shown
from mpskit.cli.estimate_job import read_batch
from mpskit.cli.json_output import print_json
from mpskit.cli.output import check_folder, completing, print_wrapped, progress
from mpskit.cli.user_file import run_file, users_code
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.correctness.divergence import Divergence

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit check
  mpskit check --only layer-norm-frozen-input
  mpskit check train.py:make_model \\
      --batch 'float32[32,784]' 'int64[32]'
  mpskit check train.py:Net --inference \\
      --batch 'float32[8,3,64,64]'
  mpskit simulate m2-16gb -- -m mpskit check

Alone it tries each known bug of torch's MPS backend here.
With FILE.py:NAME it runs one step of that model on the
device and on the CPU, and names the first operator that
is wrong. The exit code is 1 where something is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit check [FILE.py:NAME] [options]"
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "model",
        nargs="?",
        metavar="FILE.py:NAME",
        help="a callable, class or model in a Python file, which is run; none: the known bugs",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        metavar="TENSOR",
        help="dtype[sizes] by position, or name=dtype[sizes] by name; floats are random, "
        "integers 1 unless dtype[sizes]=VALUE",
    )
    parser.add_argument("--step", metavar="NAME", help="a function of (model, batch) in that file")
    parser.add_argument("--inference", action="store_true", help="compare no gradients")
    parser.add_argument("--device", metavar="NAME", help="what is checked (the accelerator)")
    parser.add_argument(
        "--script", metavar="PATH", help="write a script that shows the wrong operator"
    )
    only = parser.add_argument(
        "--only", nargs="+", metavar="KEY", help="known bugs to try, by their names"
    )
    completing(only, _keys)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 where something is wrong."""
    _refuse(arguments)
    if arguments.model is not None:
        return _check_model(arguments)
    from mpskit import check_device

    progress("trying the known bugs, each in a process of its own")
    report = check_device(arguments.device, keys=arguments.only)
    progress("")
    if arguments.json:
        print_json("check", report.model_dump(mode="json"))
    else:
        for line in str(report).splitlines():
            print_wrapped(line)
    return 1 if report.affected else 0


def _check_model(arguments: argparse.Namespace) -> int:
    from mpskit import find_divergence

    path, _, name = arguments.model.rpartition(":")
    batch = read_batch(arguments.batch)
    progress(f"running {path}")
    names = run_file(path, name, arguments.step)
    progress("comparing one step")
    with users_code(path):
        found = find_divergence(
            names[name],
            batch,
            device=arguments.device,
            step=names[arguments.step] if arguments.step is not None else None,
            train=not arguments.inference,
        )
    progress("")
    script: str | None = arguments.script if found.script is not None else None
    if script is not None:
        found.save_script(script)
    if arguments.json:
        print_json("check", {"model": arguments.model, **found.model_dump(mode="json")})
    else:
        _show(found, script)
    return 1 if found else 0


def _show(found: Divergence, script: str | None) -> None:
    for line in str(found).splitlines():
        print_wrapped(line)
    if script is not None:
        shows = "shows it" if found.script_reproduces else "did not show it here when it was tried"
        print_wrapped(f"{script} {shows} with torch alone: python {script}")
    elif found.script is not None:
        print_wrapped("--script PATH writes a script that shows it with torch alone")


def _refuse(arguments: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it.

    Raises:
        ArgumentError: an option that is for the other use, no batch, or a path that cannot be
            written.
    """
    model: Any = arguments.model
    for name in ("batch", "step", "script"):
        if model is None and getattr(arguments, name) is not None:
            raise ArgumentError(f"--{name} is for FILE.py:NAME", given=getattr(arguments, name))
    if model is None and arguments.inference:
        raise ArgumentError("--inference is for FILE.py:NAME", given=True)
    if model is None:
        return
    if arguments.only is not None:
        raise ArgumentError("--only is for the known bugs, without a model", given=arguments.only)
    if not model.rpartition(":")[0]:
        raise ArgumentError(f"{shown(model)} is not FILE.py:NAME", given=model)
    if not arguments.batch:
        raise ArgumentError("say what the batch is: --batch 'float32[8,784]'", given=model)
    if arguments.script is not None:
        check_folder(arguments.script)


def _keys() -> Iterable[str]:
    from mpskit.correctness.issue_table import issue_table

    return [issue.key for issue in issue_table()]
