"""``mpskit validate``: what mpskit says of this machine beside what the machine does."""

from __future__ import annotations

import argparse
import sys

from mpskit.cli.json_output import print_json
from mpskit.cli.output import completing, print_wrapped, told_warnings

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit validate
  mpskit validate --json > report.json
  mpskit validate --checks allocator operators
  mpskit simulate m2-16gb -- -m mpskit validate

It takes some minutes, and each check runs in a process of
its own. The report names no user, host or path: it can be
sent with an issue. The exit code is 1 when something that
mpskit says did not hold."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from mpskit.validation.names import NAMES

    parser.epilog = _EXAMPLES
    parser.usage = "mpskit validate [options]"
    parser.add_argument("--device", help="a device of this machine (default: the best one)")
    checks = parser.add_argument("--checks", nargs="+", metavar="CHECK", help=", ".join(NAMES))
    completing(checks, lambda: NAMES)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if a claim did not hold."""
    from mpskit.validation import validate

    def progress(check: str) -> None:
        if sys.stderr.isatty():
            print(f"mpskit validate: {check}", file=sys.stderr)

    with told_warnings("validate"):
        report = validate(arguments.device, checks=arguments.checks, progress=progress)
    if arguments.json:
        print_json("validate", {**report.model_dump(mode="json"), "holds": report.holds})
    else:
        print_wrapped(str(report))
    return 0 if report.holds else 1
