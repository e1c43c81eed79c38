"""Compare a rehearsal's memory with the same script on the simulated Mac, with real numbers.

    python benchmarks/bench_rehearse.py [--machine m1-16gb] [--only NAME ...] [--json FILE]

Each script of ``rehearse_scripts`` runs three optimizer steps to its own end, twice, each time in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).parent / "rehearse_scripts"


def main() -> int:
    """Run what is asked for and print the table; 1 if a script is outside of the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default="m1-16gb")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], arguments.one[1], arguments.machine)))
        return 0
    names = arguments.only or sorted(p.stem for p in SCRIPTS.glob("[a-z]*.py"))
    columns = ("script", "live", "driver", "live, rehearsed", "driver, rehearsed", "CPU s")
    print("|", " | ".join((*columns, "CPU s, rehearsed")), "|")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for name in names:
        rows.append(row := compared(name, arguments.machine))
        real, seen = row["simulated"], row["rehearsed"]
        print(
            f"| {name} | {real['live']} | {real['driver']} | {off(seen, real, 'live')} | "
            f"{off(seen, real, 'driver')} | {real['seconds']:.1f} | {seen['seconds']:.1f} |",
            *seen["findings"], sep="\n", flush=True,
        )  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return int(any(not row["close"] for row in rows))


def compared(name: str, machine: str) -> dict:
    """Return the figures of one script by both ways."""
    found = {how: child(how, name, machine) for how in ("simulated", "rehearsed")}
    real, seen = found["simulated"], found["rehearsed"]
    live = abs(seen["live"] - real["live"]) <= 0.005 * real["live"]
    driver = abs(seen["driver"] - real["driver"]) <= 0.02 * real["driver"]
    return {"script": name, "close": live and driver, **found}


def child(how: str, name: str, machine: str) -> dict:
    """Run one script in a process of its own."""
    command = [sys.executable, __file__, "--machine", machine, "--one", how, name]
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ), check=False
    )
    if done.returncode:
        sys.exit(f"{name} {how}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one(how: str, name: str, machine: str) -> dict:
    """Run one script here."""
    import torch  # noqa: F401 - not timed

    import mpskit

    sys.path.insert(0, str(SCRIPTS))
    path = str(SCRIPTS / f"{name}.py")
    started = time.process_time()  # what other programs do counts little then
    if how == "simulated":
        with mpskit.simulate(machine) as mac:
            runpy.run_path(path, run_name="__main__")
            figures = {"live": mac.peak_allocated_bytes, "driver": mac.peak_driver_bytes}
    else:
        with mpskit.rehearse(machine, steps=None) as run:
            runpy.run_path(path, run_name="__main__")
        figures = {"live": run.report.peak_bytes, "driver": run.report.driver_bytes}
        bad = [str(f) for f in run.report.findings if f.severity in {"stops", "slow", "wrong"}]
        figures["findings"] = bad
    figures["seconds"] = time.process_time() - started
    figures["rss_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures


def off(seen: dict, real: dict, what: str) -> str:
    """Return how far a figure is off, in words of the table."""
    difference = seen[what] - real[what]
    return "the same" if not difference else f"{100 * difference / real[what]:+.2f}%"


if __name__ == "__main__":
    sys.exit(main())
