"""``mpskit budget``: how much memory a job may use, on this machine or on another Mac."""

from __future__ import annotations

import argparse
import math

from mpskit._base.sizes import GIB, parse_bytes
from mpskit.cli.json_output import print_json
from mpskit.cli.output import completing, machines_and_cards, print_wrapped, told_warnings
from mpskit.errors import ArgumentError
from mpskit.host.kinds import DEFAULT_MACOS
from mpskit.memory.budget import MemoryBudget, machine_budget, memory_budget, memory_budget_for

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit budget
  mpskit budget --machine m1-16gb --macos 26 --reserve 2GiB
  mpskit budget --ram-gib 24 --json

The exit code is 1 when nothing is known to be usable."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLES
    parser.usage = "mpskit budget [options]"
    where = parser.add_mutually_exclusive_group()
    machine = where.add_argument(
        "--machine", metavar="NAME", help="a known Mac or CUDA card, such as m1-8gb or T4"
    )
    completing(machine, machines_and_cards)
    where.add_argument("--ram-gib", metavar="N", help="a Mac with N GiB of memory")
    where.add_argument("--device", help="a device of this machine (default: the best one)")
    parser.add_argument("--macos", metavar="V", help="its macOS, such as 15.6 or 26")
    parser.add_argument("--reserve", metavar="SIZE", help="what to leave unused: 2GiB or 10%%")
    parser.add_argument("--json", action="store_true", help="print the budget as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the budget; 1 if nothing is known to be usable.

    Torch is imported only for this machine's own device.
    """
    with told_warnings("budget"):
        budget = _budget(arguments)
    if arguments.json:
        print_json("budget", budget.model_dump(mode="json"))
    else:
        print_wrapped(str(budget))
    return 0 if budget.usable_bytes else 1


def _budget(arguments: argparse.Namespace) -> MemoryBudget:
    if arguments.machine is not None:
        return machine_budget(arguments.machine, arguments.macos, reserve=arguments.reserve)
    if arguments.ram_gib is not None:
        macos = arguments.macos or DEFAULT_MACOS
        return memory_budget_for(_ram(arguments.ram_gib), macos, reserve=arguments.reserve)
    if arguments.macos is not None:
        raise ArgumentError(
            "--macos is for another Mac: add --machine or --ram-gib", given=arguments.macos
        )
    return memory_budget(arguments.device, reserve=arguments.reserve)


def _ram(text: str) -> int:
    """Return the bytes of ``16``, ``7.5`` or ``16GB``.

    Raises:
        ArgumentError: it is no number of GiB, or not a positive one.
    """
    try:
        number = float(text)
    except ValueError:
        return parse_bytes(text)
    if not 0 < number < math.inf:
        raise ArgumentError(f"--ram-gib must be positive, got {text}", given=text)
    return int(number * GIB)
