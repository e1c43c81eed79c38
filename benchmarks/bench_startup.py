"""What choosing a device costs: mpskit beside accelerate, lightning and sentence-transformers.

    python benchmarks/bench_startup.py [--runs 5] [--json]

Every figure is taken in fresh Python processes, the candidates in turn within each round, so that
a slow minute of the machine slows them all. The table shows medians, and the ratios are between
medians of the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys

# name -> what is imported, and the expression that answers "which device"
PEERS = {
    "accelerate": ("from accelerate import PartialState", "PartialState().device"),
    "lightning": (
        "from lightning.pytorch import Trainer",
        "Trainer(logger=False, enable_checkpointing=False).strategy.root_device",
    ),
    "sentence-transformers": (
        "from sentence_transformers.util import get_device_name",
        "get_device_name()",
    ),
}
MPSKIT = ("import mpskit", "mpskit.get_optimal_device()")
# What torch and pydantic cost when they are first used is theirs: one model is built, because
# pydantic imports most of itself then.
HEAVY = "import torch, pydantic\nclass M(pydantic.BaseModel):\n    a: int\nM(a=1)"
TEMPLATE = """
import logging, sys, time, warnings
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
{before}
t0 = time.perf_counter()
{imports}
t1 = time.perf_counter()
{call}
t2 = time.perf_counter()
n = {repeats}
for _ in range(n):
    {call}
t3 = time.perf_counter()
print(t1 - t0, t2 - t1, (t3 - t2) / n)
"""


def measure(before: str, imports: str, call: str, repeats: int) -> tuple[float, float, float]:
    """Return seconds for the import, the first call and one repeated call, in a fresh process."""
    code = TEMPLATE.format(before=before, imports=imports, call=call, repeats=repeats)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, third = map(float, done.stdout.split()[-3:])
    return first, second, third


def rows(runs: int) -> dict[str, tuple[float, float, float]]:
    """Measure everything ``runs`` times in turn; return medians."""
    jobs = {
        "mpskit": ("", *MPSKIT, 10_000),
        "mpskit, torch and pydantic already imported": (HEAVY, *MPSKIT, 10_000),
        **{name: ("", *peer, 3) for name, peer in PEERS.items()},
    }
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in jobs}
    for turn in range(runs):
        for name, job in jobs.items():
            print(f"\rrun {turn + 1}/{runs}: {name:<60}", end="", file=sys.stderr, flush=True)
            taken[name].append(measure(*job))
    print(file=sys.stderr)
    return {
        name: tuple(statistics.median(column) for column in zip(*times, strict=True))
        for name, times in taken.items()
    }


def main() -> None:
    """Print the table, or its JSON twin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = rows(arguments.runs)
    if arguments.json:
        print(json.dumps({"schema": 1, "seconds": found}, indent=2))
        return
    print(
        f"{platform.machine()}, Python {platform.python_version()}, medians of {arguments.runs}\n"
    )
    print("| | import | first call | repeated call | import, times mpskit's |")
    print("|---|---|---|---|---|")
    ours = found["mpskit"][0]
    for name, (load, first, again) in found.items():
        cells = f"{load * 1e3:.1f} ms | {first * 1e3:.1f} ms | {again * 1e6:.1f} us"
        print(f"| {name} | {cells} | {load / ours:.0f} |")


if __name__ == "__main__":
    main()
