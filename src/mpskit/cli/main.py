"""``mpskit COMMAND``: import the command's module, and no other, and run it.

A command's module has two functions: ``add_arguments(parser)`` and ``run(arguments) -> int``.
Exit codes: 0 success, 1 the answer is no, 2 wrong usage. An MpskitError is printed as one line
on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

from mpskit.backends.facts import torch_trouble
from mpskit.cli.output import print_wrapped
from mpskit.errors import MpskitError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "doctor": "what this machine has, what works, and what fixes the rest",
    "device": "print the device to use, as one word",
    "budget": "how much memory a job may use, here or on another machine",
    "monitor": "run a command and watch its memory",
    "estimate": "how much memory a model needs, before it runs",
    "plan": "settings that fit: for a model, on a machine",
    "compare": "which device is faster for a step, and why it is slow",
    "evidence": "what this machine has measured and remembers",
    "validate": "whether this machine does what mpskit says of it",
    "check": "whether results are right here: known bugs, or a model",
    "simulate": "run a script on a simulated Mac",
    "rehearse": "what a training script would do on a Mac, in seconds",
}

_EPILOG = """`mpskit` alone runs the doctor; `mpskit COMMAND --help` has
examples. Exit codes: 0 success, 1 the answer is no,
2 wrong usage."""

_SHELL = "_ARGCOMPLETE"  # set by a shell that asks for completions


class _Command(Protocol):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


class _Version(argparse.Action):
    """``--version``, which reads the package metadata only when it is used."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"mpskit {version('mpskit')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        _write_anything(stream)
    words = list(sys.argv[1:] if argv is None else argv) or ["doctor"]
    command = _command(words)
    try:
        parser = _parser(command)
        if argv is None and _SHELL in os.environ:
            _complete(_parser(*COMMANDS))
        arguments = parser.parse_args(words)
        return _module(arguments.command).run(arguments)
    except MpskitError as error:
        print_wrapped(f"mpskit {command}: {error}", error=True)
        return 2
    except BrokenPipeError:
        # The reader of the pipe, such as head, has exited: there is nobody to tell.
        sys.stderr.close()
        return 1
    except (ImportError, OSError) as error:
        # Such as a missing or broken torch, or a full disk.
        see = "" if command == "doctor" else " (see: mpskit doctor)"
        print_wrapped(f"mpskit {command}: {error}{see}", error=True)
        return 1
    except Exception:
        trouble = torch_trouble()
        if trouble is None:
            raise
        print_wrapped(f"mpskit {command}: {trouble} (see: mpskit doctor)", error=True)
        return 1


def _write_anything(stream: Any) -> None:
    """Let a stream write what its encoding lacks as an escape, rather than raise in mid-report."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


def _command(words: Sequence[str]) -> str:
    """Return the first word that is no option: the command, if there is one."""
    return next((word for word in words if not word.startswith("-")), "")


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could follow, and exit; without argcomplete, do nothing."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)


def _parser(*chosen: str) -> argparse.ArgumentParser:
    """Build the parser; only the chosen commands' modules are imported, for their arguments."""
    parser = argparse.ArgumentParser(
        prog="mpskit",
        description="Know the machine, choose the device, know what fits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=_filled(f"{summary[0].upper()}{summary[1:]}."),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in chosen:
            _module(name).add_arguments(sub)
    return parser


def _filled(text: str) -> str:
    """Return a text in lines of the terminal: the formatter that keeps examples wraps nothing."""
    return textwrap.fill(text, max(shutil.get_terminal_size().columns - 2, 20))


def _module(command: str) -> _Command:
    module: Any = importlib.import_module(f"mpskit.cli.{command}")
    found: _Command = module
    return found
