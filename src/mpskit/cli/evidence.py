"""``mpskit evidence``: what this machine has measured and remembers, and forgetting it."""

from __future__ import annotations

import argparse

from mpskit.cli.json_output import print_json
from mpskit.cli.output import print_wrapped

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit evidence list
  mpskit evidence list --json
  mpskit evidence clear

It holds the times that `mpskit compare` and
get_optimal_device(workload=..., measure=...) took, and
whether MPS works where that was tried in a virtual machine.
MPSKIT_CACHE_DIR says where it lies."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLES
    parser.usage = "mpskit evidence {list,clear} [--json]"
    parser.add_argument(
        "action", nargs="?", choices=("list", "clear"), default="list", help="default: list"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """List what is remembered, or forget it."""
    from mpskit.device.probe import clear_probes, kept_probes
    from mpskit.speed.evidence import all_evidence, clear_evidence

    if arguments.action == "clear":
        removed = clear_evidence() + clear_probes()
        if arguments.json:
            print_json("evidence", {"removed": removed})
        else:
            print_wrapped(f"{removed} removed")
        return 0
    times, probes = all_evidence(), kept_probes()
    if arguments.json:
        document = {
            "times": [entry.model_dump(mode="json") for entry in times],
            "probes": [answer._asdict() for answer in probes],
        }
        print_json("evidence", document)
        return 0
    for entry in times:
        print_wrapped(str(entry))
    for answer in probes:
        print_wrapped(f"MPS in a virtual machine: {answer.failure or 'works'}")
    if not times and not probes:
        print_wrapped("nothing is remembered: mpskit compare FILE.py:NAME takes times")
    return 0
