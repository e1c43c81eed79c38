"""``mpskit device``: print the device to use as one word, for shell scripts."""

from __future__ import annotations

import argparse

from mpskit.cli.json_output import print_json
from mpskit.cli.output import print_wrapped, told_warnings

__all__ = ["add_arguments", "run"]

_EXAMPLES = """examples:
  mpskit device --why
  python train.py --device "$(mpskit device)"
  MPSKIT_DEVICE=cpu mpskit device"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--why", action="store_true", help="add a paragraph that says why")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument(
        "--force-mps", action="store_true", help="MPS if it can work at all, else a warning"
    )
    parser.add_argument("--policy", help="auto, conservative, or an order such as mps,cuda,cpu")


def run(arguments: argparse.Namespace) -> int:
    """Print the device; the exit code is always 0, because there is always a CPU."""
    from mpskit.device import get_optimal_device

    with told_warnings("device"):
        device, info = get_optimal_device(
            not arguments.cpu, arguments.force_mps, policy=arguments.policy
        )
    if arguments.json:
        print_json("device", info.model_dump(mode="json"))
        return 0
    print(device)
    if arguments.why:
        print_wrapped(str(info))
    return 0
