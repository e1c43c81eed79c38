"""``mpskit rehearse MACHINE... -- SCRIPT``: what an unmodified script would do on a Mac.

It runs a few optimizer steps without numbers, and tells memory, what breaks and what is slow. Exit
codes: 0 it runs and fits, 1 something stops it or it does not fit, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mpskit.cli.json_output import print_json
from mpskit.cli.output import check_folder, print_wrapped
from mpskit.cli.script_words import add_words, own_options
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.rehearsal.result import Rehearsal

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit rehearse m1-16gb -- train.py --epochs 3
  mpskit rehearse m1-8gb m2-16gb -- train.py
  mpskit rehearse all --steps 2 -- -m my_package.train

It needs torch 2.6 or newer. Files that the script writes go
to a temporary folder that is removed (--write lets them
through). Names of machines: mpskit simulate --list. Exit
codes: 0 it runs and fits, 1 it does not, 2 wrong usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit rehearse MACHINE ... [options] -- SCRIPT"
    parser.epilog = _EXAMPLES
    _add_options(parser)
    add_words(parser, "machines, or all, and what to run: a .py file, -m MODULE, or torchrun ...")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=int, default=3, metavar="N", help="optimizer steps to run (3)"
    )
    parser.add_argument(
        "--whole", action="store_true", help="run to the script's own end, however many steps"
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first error, with the Mac's own text"
    )
    parser.add_argument("--write", action="store_true", help="let the script's files be written")
    parser.add_argument("--macos", metavar="V", help="another macOS version, such as 14.5")
    parser.add_argument(
        "--fallback", action="store_true", help="missing operators run on the CPU, with a warning"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the memory over time (.png, .svg)")
    parser.add_argument(
        "--json", action="store_true", help="the report as JSON; the script's output goes to stderr"
    )


def run(arguments: argparse.Namespace) -> int:
    """Rehearse the script and return the exit code."""
    words = own_options(arguments, "rehearse", _add_options, machines="*")
    names: list[str] = arguments.machines
    if not names or not words:
        raise ArgumentError("name a machine and what to run: m1-8gb -- train.py", given=words)
    if arguments.plot is not None:
        check_folder(arguments.plot)
    report = _rehearse(names, words, arguments)
    if report is None:
        print_wrapped("mpskit rehearse: the script ended and imported no torch", error=True)
        return 1
    if arguments.json:
        print_json("rehearse", report.to_json())
    else:
        print_wrapped(str(report))
    if arguments.plot is not None:
        print_wrapped(f"timeline: {report.plot(arguments.plot)}", error=arguments.json)
    return 0 if report.runs else 1


def _rehearse(
    names: Sequence[str], words: Sequence[str], arguments: argparse.Namespace
) -> Rehearsal | None:
    from mpskit.backends.versions import require
    from mpskit.host import Machine
    from mpskit.rehearsal import chosen_machines
    from mpskit.rehearsal.script import rehearse_script

    machines = chosen_machines(list(names))
    if arguments.macos is not None:
        machines = [Machine(**one.model_dump() | {"macos": arguments.macos}) for one in machines]
    if arguments.steps < 1:
        raise ArgumentError(f"--steps {arguments.steps}: at least one step is needed")
    require("simulation")
    with _script_output(aside=arguments.json):
        return rehearse_script(
            words,
            machines,
            steps=None if arguments.whole else arguments.steps,
            strict=arguments.strict,
            write=arguments.write,
            fallback=True if arguments.fallback else None,
            stepped=_progress(arguments),
        )


@contextlib.contextmanager
def _script_output(*, aside: bool) -> Iterator[None]:
    """Send what the script and its children print to stderr: stdout is for the report."""
    if not aside:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _progress(arguments: argparse.Namespace) -> Callable[[int], None] | None:
    """Return what tells each step on a terminal; None elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    most = "" if arguments.whole else f" of {arguments.steps}"

    def told(step: int) -> None:
        print(f"mpskit rehearse: step {step}{most}", file=sys.stderr, flush=True)

    return told
