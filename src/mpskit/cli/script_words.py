"""Parses ``MACHINE [options] -- SCRIPT ...``, for the commands that run a user's script."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mpskit.cli.output import completing, known_machines

__all__ = ["add_words", "own_options"]


def add_words(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the words that ``own_options`` parses.

    argparse cannot tell where the script's own options begin, so it takes all words as they are.

    Args:
        parser: the command's.
        what: help about them.
    """
    words = parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="MACHINE -- SCRIPT ...", help=what
    )
    completing(words, known_machines)


def own_options(
    arguments: argparse.Namespace,
    command: str,
    add_options: Callable[[argparse.ArgumentParser], None],
    *,
    machines: str,
) -> list[str]:
    """Parse mpskit's own options out of the words; return the words from the script on.

    Without ``--`` the first word is the machine, and the script begins with the second.

    Args:
        arguments: with ``words``; gets the options, and ``machines``.
        command: its name in an error.
        add_options: adds the command's own options to a parser.
        machines: how many machines it takes, as argparse's ``nargs``: a list for ``"*"``.
    """
    words: list[str] = arguments.words
    cut = words.index("--") if "--" in words else 1
    options = argparse.ArgumentParser(prog=f"mpskit {command}", add_help=False)
    add_options(options)
    options.add_argument("machines", nargs=machines)
    options.parse_args(words[:cut], namespace=arguments)
    return words[cut + 1 :] if "--" in words else words[1:]
