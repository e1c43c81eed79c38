"""``mpskit simulate MACHINE -- SCRIPT``: run an unmodified script on a simulated Mac.

``mpskit simulate m1-8gb -- train.py --epochs 1`` runs a file, ``-- -m pytest tests/`` a module,
``-- torchrun train.py`` a program that starts Python. The exit code is the script's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpskit.cli.json_output import print_json
from mpskit.cli.output import print_rows
from mpskit.cli.script_words import add_words, own_options
from mpskit.errors import ArgumentError

if TYPE_CHECKING:
    from mpskit.host import Machine

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit simulate --list
  mpskit simulate m1-8gb -- train.py --epochs 1
  mpskit simulate macbook-air-m2-16gb -- -m pytest tests

It needs torch 2.6 or newer. The exit code is the script's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit simulate MACHINE [options] -- SCRIPT ..."
    parser.epilog = _EXAMPLES
    _add_options(parser)
    add_words(
        parser, "a machine of --list, and what to run on it: a .py file, -m MODULE or a program"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(machines=None)
    parser.add_argument("--macos", metavar="V", help="another macOS version, such as 14.5")
    parser.add_argument(
        "--rng", choices=("cpu", "separate"), default="cpu",
        help="GPU's random numbers: the CPU's stream, or one of their own (cpu)",
    )  # fmt: skip
    parser.add_argument(
        "--fallback", action="store_true", help="missing operators run on the CPU, with a warning"
    )
    parser.add_argument("--list", action="store_true", help="print the machines and exit")
    parser.add_argument("--json", action="store_true", help="with --list, or after the script")


def run(arguments: argparse.Namespace) -> int:
    """Run the script on the machine and return its exit code."""
    words = own_options(arguments, "simulate", _add_options, machines="?")
    if arguments.list:
        return _list(as_json=arguments.json)
    if arguments.machines is None or not words:
        raise ArgumentError("name a machine and what to run: m1-8gb -- train.py", given=words)
    code = _run(words, _environment(arguments))
    if arguments.json:
        print_json("simulate", {"machine": arguments.machines, "run": words, "exit_code": code})
    return code


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    from mpskit.host import Machine, find_machine
    from mpskit.simulation.children import environment

    machine = find_machine(arguments.machines)
    if arguments.macos is not None:
        machine = Machine(**machine.model_dump() | {"macos": arguments.macos})
    fallback = True if arguments.fallback else None
    return environment(machine, rng=arguments.rng, fallback=fallback, early=True)


def _run(words: Sequence[str], variables: dict[str, str]) -> int:
    from mpskit.system.command import exit_code, run_command

    command = list(words)
    if command[0].startswith("-") or command[0].endswith(".py"):
        command = [sys.executable, *command]
    try:
        return exit_code(run_command(command, os.environ | variables))
    except OSError as error:
        raise ArgumentError(f"cannot run {command[0]!r}: {error.strerror}", given=words) from None


def _list(*, as_json: bool) -> int:
    from mpskit.host.machines import machines

    if as_json:
        profiles = {
            name: machine.model_dump(mode="json") | {"aliases": list(machine.aliases)}
            for name, machine in machines().items()
        }
        print_json("simulate", {"machines": profiles})
        return 0
    rows = [
        (name, str(machine).removeprefix(f"{name}: "), _products(machine))
        for name, machine in machines().items()
    ]
    print_rows(("machine", "what it is", "Macs that have it"), rows)
    return 0


def _products(machine: Machine) -> str:
    """Return the products; ``macbook-air`` means ``macbook-air-m1-8gb`` in the row of m1-8gb."""
    return ", ".join(alias.removesuffix(f"-{machine.name}") for alias in machine.aliases)
