"""``mpskit compare FILE.py:NAME``: time a step on each device, and say why it is slow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from mpskit._base.arguments import shown
from mpskit.cli.json_output import print_json
from mpskit.cli.output import check_folder, print_rows, print_wrapped, told_warnings
from mpskit.cli.user_file import run_file, users_code
from mpskit.errors import ArgumentError

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit compare examples/steps.py:make_step
  mpskit compare train.py:make_step --why
  mpskit compare train.py:make_step --devices cpu mps \\
      --seconds 5 --plot times.png

NAME is a function in FILE.py, which is run: it gets a
device's name and returns a step, a function without
arguments. The exit code is 1 when no device is clearly
faster."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit compare FILE.py:NAME [options]"
    parser.epilog = _EXAMPLES
    parser.add_argument("step", metavar="FILE.py:NAME", help="what makes a step for a device")
    parser.add_argument(
        "--devices", nargs="+", metavar="DEVICE", help="default: the CPU and this machine's GPU"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="N", help="how long each is timed (2)"
    )
    parser.add_argument("--why", action="store_true", help="also say what makes the step slow")
    parser.add_argument("--plot", metavar="FILE", help="draw the times into an image")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 if no device is clearly faster."""
    from mpskit.speed import compare_devices, diagnose

    if arguments.plot:
        check_folder(arguments.plot)
    seconds = _seconds(arguments.seconds)
    make_step = _make_step(arguments.step)
    progress = _progress(quiet=arguments.json)
    with told_warnings("compare"), users_code(arguments.step.rpartition(":")[0]):
        comparison = compare_devices(
            make_step, arguments.devices, seconds=seconds, progress=progress
        )
        device = next((t.device for t in comparison.timings if t.device != "cpu"), "cpu")
        diagnosis = diagnose(make_step, device, progress=progress) if arguments.why else None
    if arguments.plot:
        comparison.plot(arguments.plot)
    if arguments.json:
        why = None if diagnosis is None else diagnosis.model_dump(mode="json")
        print_json("compare", {**comparison.model_dump(mode="json"), "diagnosis": why})
    else:
        _print(comparison, diagnosis)
    return 0 if comparison.clear else 1


def _seconds(seconds: float) -> float:
    if not 0 < seconds < 3600:
        raise ArgumentError("--seconds is above 0 and below 3600", given=seconds)
    return seconds


def _make_step(text: str) -> Callable[[str], Callable[[], Any]]:
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise ArgumentError(f"give FILE.py:NAME, not {shown(text)}", given=text)
    found: Callable[[str], Callable[[], Any]] = run_file(path, name)[name]
    return found


def _progress(*, quiet: bool) -> Callable[[str], None]:
    if quiet or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: print(f"mpskit compare: {text}", file=sys.stderr)


def _print(comparison: Any, diagnosis: Any) -> None:
    rows = [comparison.row(timing) for timing in comparison.timings]
    print_rows(("device", "a step", "95% interval", "runs", "memory"), rows)
    print()
    print_wrapped(comparison.verdict)
    for note in comparison.notes:
        print_wrapped(f"note: {note}")
    if diagnosis is not None:
        print()
        print_wrapped(str(diagnosis))
