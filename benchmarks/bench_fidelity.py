"""How true the simulated Mac's refusals are, as a section of the run; ``fidelity.py`` measures it.

python benchmarks/bench_fidelity.py
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import fidelity
from results import Column, Plot, Row, Section, Size, Table, script


def section(size: Size) -> Section:
    """Run the sweep and return its tables."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wanted = size.of(fidelity.DTYPES[:1], fidelity.DTYPES, fidelity.DTYPES)
    cases = fidelity.sweep(wanted, *size.of((40, 2), (None, None), (None, None)))
    units: dict[str, Any] = {"agree": "percent"}
    keys = {
        "who": "dtype", "cases": "cases", "agree": "agree", "false alarms": "false alarms",
        "misses": "misses", "samples": "samples",
    }  # fmt: skip
    rows = [
        row | {"who": row["dtype"], "agree": row["agree"] / row["cases"]}
        for row in fidelity.summary(cases)
    ]
    table = Table(
        columns=tuple(
            Column(key=key, heading=heading, unit=units.get(key, "count"))
            for key, heading in keys.items()
        ),
        rows=tuple(Row(values={key: row[key] for key in keys}, side="ours") for row in rows),
        plot=Plot(column="agree", title="Refusals as in torch's own list"),
    )
    odd = [case for case in cases if case.kind != "agreement"]
    heads = ("who", "dtypes", "kind", "error", "why")
    named = Table(
        title="Every disagreement",
        columns=tuple(
            Column(key=key, heading=text)
            for key, text in zip(
                heads, ("operator", "dtypes", "disagreement", "error here", "why"), strict=True
            )
        ),
        rows=tuple(Row(values=dict(zip(heads, row, strict=True))) for row in fidelity.grouped(odd)),
    )
    return Section(
        name="fidelity",
        title="How true a simulated Mac's refusals are",
        question=(
            "Does the simulated Mac refuse the operators that torch's developers list as missing "
            "on a Mac, and no others?"
        ),
        command="python benchmarks/bench_fidelity.py",
        page="fidelity",
        tables=(table, named),
        notes=(
            (
                "The aim: at least 99% at float32 and 97% over all five dtypes. A false alarm is "
                "refused here and not in the list, a miss is in the list and not refused here."
            ),
        ),
    )


if __name__ == "__main__":
    script(section)
