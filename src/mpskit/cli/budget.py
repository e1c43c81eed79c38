"""``mpskit budget``: how much memory a job may use, on this machine or on another Mac."""

from __future__ import annotations

import argparse

from mpskit._base.sizes import GIB
from mpskit.cli.json_output import print_json
from mpskit.errors import ArgumentError
from mpskit.host.kinds import DEFAULT_MACOS
from mpskit.memory.budget import MemoryBudget, memory_budget, memory_budget_for

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--machine", metavar="NAME", help="a known Mac, such as m1-8gb")
    where.add_argument("--ram-gib", type=int, metavar="N", help="a Mac with N GiB of memory")
    where.add_argument("--device", help="a device of this machine (default: the best one)")
    parser.add_argument("--macos", metavar="V", help="its macOS, such as 15.6 or 26")
    parser.add_argument("--reserve", metavar="SIZE", help="what to leave alone: 2GiB or 10%%")
    parser.add_argument("--json", action="store_true", help="print the budget as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the budget; torch is imported only for this machine's own device."""
    budget = _budget(arguments)
    if arguments.json:
        print_json("budget", budget.model_dump(mode="json"))
    else:
        print(budget)
    return 0


def _budget(arguments: argparse.Namespace) -> MemoryBudget:
    if arguments.machine is not None:
        return _of_machine(arguments.machine, arguments.macos, arguments.reserve)
    if arguments.ram_gib is not None:
        macos = arguments.macos or DEFAULT_MACOS
        return memory_budget_for(arguments.ram_gib * GIB, macos, reserve=arguments.reserve)
    if arguments.macos is not None:
        raise ArgumentError(
            "--macos is for another Mac: add --machine or --ram-gib", given=arguments.macos
        )
    return memory_budget(arguments.device, reserve=arguments.reserve)


def _of_machine(name: str, macos: str | None, reserve: str | None) -> MemoryBudget:
    from mpskit.host import find_machine

    machine = find_machine(name)
    vram = machine.vram_gib * GIB if machine.vram_gib else None
    return memory_budget_for(
        machine.ram_bytes, macos or machine.macos, machine.chip, vram_bytes=vram, reserve=reserve
    )
