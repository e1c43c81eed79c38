"""What choosing a device costs: mpskit beside accelerate, lightning and sentence-transformers.

    python benchmarks/bench_startup.py

Every figure is taken in fresh Python processes, the candidates in turn within each round, so that
a slow minute of the machine slows them all. The table shows medians.
"""

from __future__ import annotations

import subprocess
import sys

from results import NOISE, Column, Plot, Row, Section, Size, Table, median, script

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
HEATED = "mpskit, torch and pydantic imported before"
HEADINGS = {
    "load": "import",
    "first": "first call",
    "both": "import and first call",
    "again": "repeated call",
}
NOTES = (
    (
        "Medians over fresh processes, the libraries in turn. mpskit's first call imports torch "
        "and pydantic, which the others do on import: the column of both together compares like "
        "with like. In the second row both are imported and pydantic has built one model, because "
        "it imports most of itself for the first one (about 0.1 s)."
    ),
    (
        "The aims: an import at least 50 times cheaper than any of the three, a first call under "
        "20 ms beyond importing torch and pydantic, a repeated call under 2 us."
    ),
)
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


def medians(runs: int) -> dict[str, tuple[float, float, float]]:
    """Measure everything ``runs`` times in turn; return medians."""
    jobs = {
        "mpskit": ("", *MPSKIT, 10_000),
        HEATED: (HEAVY, *MPSKIT, 10_000),
        **{name: ("", *peer, 3) for name, peer in PEERS.items()},
    }
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            taken[name].append(measure(*job))
    return {
        name: tuple(median(column) for column in zip(*times, strict=True))
        for name, times in taken.items()
    }


def section(size: Size) -> Section:
    """Measure and return the tables."""
    rows = []
    for name, (load, first, again) in medians(size.of(1, 3, 5)).items():
        values = {"who": name, "load": load, "first": first, "both": load + first, "again": again}
        side = "peer" if name in PEERS else None if name == HEATED else "ours"
        rows.append(Row(values=values, side=side))
    times = [
        Column(key=key, heading=heading, unit="seconds", better="low", margin=NOISE)
        for key, heading in HEADINGS.items()
    ]
    table = Table(
        columns=(Column(key="who", heading="library"), *times),
        rows=tuple(rows),
        plot=Plot(column="load", title="Seconds that the import takes", log=True),
    )
    return Section(
        name="startup",
        title="Start-up and the decision",
        question="What does it cost to import a library and to ask it which device to use?",
        command="python benchmarks/bench_startup.py",
        tables=(table,),
        notes=NOTES,
    )


if __name__ == "__main__":
    script(section)
