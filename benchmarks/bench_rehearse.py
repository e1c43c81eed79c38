"""Compare a rehearsal's memory with the same script on the simulated Mac, with real numbers.

    python benchmarks/bench_rehearse.py [--machine m1-16gb] [--only NAME ...]

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import Column, Plot, Row, Section, Size, Table, script

SCRIPTS = Path(__file__).parent / "rehearse_scripts"
RUN = ("plain_loop", "lstm", "generate", "lightning_fit", "trainer_bf16", "trainer_lora")
NOTES = (
    (
        "Each script runs three optimizer steps to its own end, with real numbers on the simulated "
        "Mac and in a rehearsal, each in a process of its own; CPU time without the import of "
        "torch. These are small models: of larger ones a rehearsal costs the same and a simulation "
        "much more. No other library rehearses a script."
    ),
)


def compared(name: str, machine: str) -> Row:
    """Return the figures of one script by both ways."""
    real, seen = (child(how, name, machine) for how in ("simulated", "rehearsed"))
    for finding in seen["findings"]:
        print(f"  {name}: {finding}", file=sys.stderr)
    values = {
        "who": name, "live": real["live"], "driver": real["driver"],
        "live_off": seen["live"] / real["live"] - 1,
        "driver_off": seen["driver"] / real["driver"] - 1,
        "seconds": real["seconds"], "rehearsed": seen["seconds"],
        "ratio": seen["seconds"] / real["seconds"],
    }  # fmt: skip
    return Row(values=values, side="ours")


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


def section(size: Size, machine: str = "m1-16gb", only: Sequence[str] = (), **_: Any) -> Section:
    """Measure and return the table; exits with an error if a script is outside of the bounds."""
    every = sorted(path.stem for path in SCRIPTS.glob("[a-z]*.py"))
    rows = [compared(name, machine) for name in only or size.of(RUN[:1], RUN, every)]
    for row in rows:
        live, driver = (abs(float(row.values[key])) for key in ("live_off", "driver_off"))
        if live > 0.005 or driver > 0.02:
            sys.exit(f"{row.values['who']}: live is off by {live:.2%}, driver by {driver:.2%}")
    near = {"unit": "percent", "better": "near zero"}
    table = Table(
        columns=(
            Column(key="who", heading="script"),
            Column(key="live", heading="live", unit="bytes"),
            Column(key="driver", heading="driver", unit="bytes"),
            Column(key="live_off", heading="live, rehearsed", **near),
            Column(key="driver_off", heading="driver, rehearsed", **near),
            Column(key="seconds", heading="simulated", unit="seconds"),
            Column(key="rehearsed", heading="rehearsed", unit="seconds"),
            Column(key="ratio", heading="rehearsed / simulated", unit="ratio"),
        ),
        rows=tuple(rows),
        plot=Plot(column="ratio", title="CPU time of a rehearsal / of the simulated Mac"),
    )
    return Section(
        name="rehearse",
        title="Rehearsals",
        question="Does a script without numbers take the same memory as with them, and how long?",
        command="python benchmarks/bench_rehearse.py",
        full="python benchmarks/bench_rehearse.py --size full",
        tables=(table,),
        notes=NOTES,
    )


def instead(options: argparse.Namespace) -> bool:
    """Run one script here, in the child of a comparison."""
    if options.one:
        print(json.dumps(one(*options.one, options.machine)))
    return bool(options.one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default="m1-16gb")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    script(section, parser, instead)


if __name__ == "__main__":
    main()
