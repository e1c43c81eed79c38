"""``mpskit doctor``: what this machine has, what works, and what fixes the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mpskit.cli.doctor_checks import Check, Findings, gather
from mpskit.cli.json_output import print_json
from mpskit.cli.output import MARKS, printer

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit doctor
  mpskit doctor --report | pbcopy
  mpskit doctor --json > doctor.json

No user name, host name or home folder is printed. The exit
code is 1 when a check failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--report", action="store_true", help="print a block to paste into an issue"
    )
    parser.add_argument("--quiet", action="store_true", help="print only what failed")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 1 if a check failed. A missing accelerator fails no check."""
    found = gather()
    if arguments.json:
        checks = [check.model_dump(mode="json") for check in found.checks]
        print_json("doctor", {"ok": not found.failed, **found.facts, "checks": checks})
    elif arguments.report:
        _report(found)
    else:
        _show(found, quiet=arguments.quiet)
    return int(found.failed)


def _show(found: Findings, *, quiet: bool) -> None:
    show = printer()
    for check in found.checks:
        if not quiet or check.mark == "fail":
            show(check.mark, f"{check.name}: {check.seen}")
            _show_rest(check, show)
    if not quiet:
        failed = sum(check.mark == "fail" for check in found.checks)
        show("", "Nothing failed." if not failed else f"{failed} check(s) failed.")


def _report(found: Findings) -> None:
    """Print the checks as a fenced block: plain, and not wrapped, wherever it is pasted."""
    from importlib.metadata import version

    print(f"```text\nmpskit {version('mpskit')}")
    for check in found.checks:
        print(f"{MARKS[check.mark][0]} {check.name}: {check.seen}")
        if check.why:
            print(f"       why it matters: {check.why}")
    print("```")


def _show_rest(check: Check, show: Callable[[str, str], None]) -> None:
    if check.why:
        show("", f"       why it matters: {check.why}")
    if check.fix:
        # A line to copy: the terminal may break it, this program does not.
        print(f"       fix: {check.fix}")
