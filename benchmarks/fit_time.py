"""Fits the shares of ``src/mpskit/data/step_time.toml`` to published times of whole steps.

    python benchmarks/fit_time.py

The library's own formula is evaluated. Each device and kind of model has two figures: the shares of
the peak rate and of the bandwidth that a step reaches. They move from ``START`` as far as the times
pull them; launches and waiting cost what ``speed.toml`` says. Sources weigh as the square root of
their rows.

Each source is then left out in turn: the figures are fitted to the others, and its times are
compared. A range is as wide as the middle ``HELD`` of these errors. ``coverage`` is the share of
the times that a range held whose middle and width had seen none of their source. ``factor`` is the
median of the factors between such a middle and the time. The part of the file below its mark is
written anew.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpskit._base.data import read_toml
from mpskit.host.chips import parse_chip
from mpskit.speed.step_time import Rates, Shares, rates_of, seconds_with
from mpskit.speed.workload import Workload

ROOT = Path(__file__).parents[1]
TIMES = ROOT / "benchmarks" / "data" / "step_times.csv"
PAIRS = ROOT / "benchmarks" / "data" / "cpu_vs_mps.csv"
TARGET = ROOT / "src" / "mpskit" / "data" / "step_time.toml"
MARK = "# ---- below: written by benchmarks/fit_time.py ----"

KINDS = read_toml("step_time.toml")["kinds"]
GPU_SHARE = read_toml("speed.toml")["chip"]["gpu_bandwidth_share"]
START = {
    "mps": Shares(0.5, 0.8),
    "cpu": Shares(0.3, 0.6),
    "cuda": Shares(0.7, 0.7),
}
STIFFNESS = 0.3
MOST = 1.0
HELD = 0.88
COVERED = 0.75
NARROWEST = 1.25
QUALITY = {"A": 1.0, "B": 0.5, "C": 0.0}

# Cards that were timed and that nobody plans for now: float32 and half-precision peaks in TFLOPS,
# bandwidth in GB/s, from NVIDIA's Volta, Turing and Pascal whitepapers.
OTHER_CARDS = {
    "V100": (15.7, 125.0, 900.0),
    "RTX 2080 Ti": (13.45, 53.8, 616.0),
    "GTX 1080 Ti": (11.34, 11.34, 484.0),
    "Titan V": (14.9, 119.2, 653.0),
}


@dataclass(frozen=True)
class Timed:
    """A published time of a step, with its counts."""

    workload: Workload
    rates: Rates
    kind: str
    seconds: float
    source: str
    reference: str
    weight: float


def read_times() -> list[Timed]:
    """Return all times whose machine and counts are known."""
    with TIMES.open(encoding="utf-8") as file:
        found = [_timed(row) for row in csv.DictReader(file)]
    with PAIRS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found += _pair(row)
    kept = [timed for timed in found if timed is not None and timed.weight]
    rows = Counter((t.rates.device, t.kind, t.source) for t in kept)
    return [
        Timed(**{**vars(t), "weight": t.weight / math.sqrt(rows[t.rates.device, t.kind, t.source])})
        for t in kept
    ]


def _timed(row: dict[str, str]) -> Timed | None:
    workload = Workload(
        flops=float(row["flops"]),
        bytes_moved=float(row["bytes_moved"]),
        launches=float(row["launches"]),
        dtype="tf32" if row["precision"] == "tf32" else row["dtype"],
        op_class=row["op_class"],
        training=row["training"] == "yes",
    )
    return _made(workload, row, row["device"], row["seconds"])


def _pair(row: dict[str, str]) -> list[Timed | None]:
    """Return the times of a model's row in the pairs of CPU and MPS times."""
    counts = [row[name] for name in ("flops_per_step", "bytes_per_step", "launches")]
    if not row["kind"].startswith("model") or not all(counts) or row["chip"] == "unknown":
        return []
    flops, moved, launches = map(float, counts)
    half = row["opclass"].startswith("llm")  # the source's models are bfloat16
    workload = Workload(
        flops=flops,
        bytes_moved=moved,
        launches=launches,
        dtype="bfloat16" if half else "float32",
        op_class=row["opclass"],
        training=row["kind"] == "model_train",
    )
    steps = float(row["steps"])
    return [
        _made(workload, row, device, str(float(row[f"{device}_time_s"]) / steps))
        for device in ("mps", "cpu")
    ]


def _made(workload: Workload, row: dict[str, str], device: str, seconds: str) -> Timed | None:
    rates = _rates(row["chip"], row["gpu_cores"], device)
    if isinstance(rates, str):
        raise SystemExit(f"{row['chip']}: {rates}")
    kind = KINDS.get(workload.op_class or "")
    if kind is None:
        return None
    quality = QUALITY[row["quality"]]
    reading = (workload.bytes_moved or 0.0) / float(seconds)
    if kind == "decode" and reading > rates.bandwidth / GPU_SHARE:
        quality = 0.0  # faster than the memory can be read: the counts or the chip are wrong
    return Timed(
        workload, rates, kind, float(seconds), row["source_group"], row["source_ref"], quality
    )


def _rates(chip: str, gpu_cores: str, device: str) -> Rates | str:
    if chip in OTHER_CARDS:
        single, half, bandwidth = OTHER_CARDS[chip]
        rates = {"float32": single * 1e12, "float16": half * 1e12}
        return Rates("cuda", chip, rates, bandwidth * 1e9, ())
    machine = parse_chip(chip, gpu_cores=int(gpu_cores)) if gpu_cores else chip
    return rates_of(machine or chip, device)


def fitted(times: Sequence[Timed], start: Shares) -> Shares:
    """Return the shares that fit the times best, near the start."""

    def loss(shares: Shares) -> float:
        errors = sum(t.weight * math.log1p(_error(t, shares) ** 2 * 2) for t in times)
        away = sum(math.log(a / b) ** 2 for a, b in zip(shares, start, strict=True))
        return errors + STIFFNESS * away

    best, step = start, 0.4
    while step > 0.005:
        tried = [
            Shares(min(best.flops * math.exp(a), MOST), min(best.bandwidth * math.exp(b), MOST))
            for a, b in ((step, 0), (-step, 0), (0, step), (0, -step), (step, -step), (-step, step))
        ]
        better = min(tried, key=loss)
        if loss(better) < loss(best):
            best = better
        else:
            step /= 2
    return best


def _error(timed: Timed, shares: Shares) -> float:
    """Return the logarithm of the middle / the published time."""
    return math.log(seconds_with(shares, timed.workload, timed.rates)[0] / timed.seconds)


def width(errors: Sequence[tuple[float, float]]) -> float:
    """Return the factor around the middle that holds ``HELD`` of the weighted errors."""
    whole, seen = sum(weight for _, weight in errors), 0.0
    for error, weight in sorted((abs(error), weight) for error, weight in errors):
        seen += weight
        if seen >= HELD * whole:
            return max(math.exp(error), NARROWEST)
    raise ValueError("no errors")


def held_out(times: Sequence[Timed], start: Shares) -> dict[str, list[tuple[float, float]]]:
    """Return the error and the weight of every time, by source, fitted without that source."""
    found = defaultdict(list)
    for source in sorted({t.source for t in times}):
        shares = fitted([t for t in times if t.source != source], start)
        for t in times:
            if t.source == source:
                found[source].append((_error(t, shares), t.weight))
    return found


def report(times: Sequence[Timed], start: Shares) -> dict[str, Any]:
    """Return the row of one device and kind."""
    shares = fitted(times, start)
    errors = held_out(times, start)
    everything = [pair for found in errors.values() for pair in found]
    inside = rows = 0
    for source, found in errors.items():
        others = [pair for name, pairs in errors.items() if name != source for pair in pairs]
        factor = width(others or everything)
        inside += sum(abs(error) <= math.log(factor) for error, _ in found)
        rows += len(found)
    return {
        "flops_share": round(shares.flops, 3),
        "bandwidth_share": round(shares.bandwidth, 3),
        "spread": round(width(everything), 2),
        "coverage": round(inside / rows, 2),
        "factor": round(math.exp(statistics.median(abs(e) for e, _ in everything)), 2),
        "rows": rows,
        "sources": len(errors),
        "published": sorted({t.reference for t in times}),
    }


def _written(value: object) -> str:
    """Return a value as TOML has it; a list with a line for each."""
    if not isinstance(value, list):
        return str(value)
    return "[\n" + "".join(f"  {json.dumps(entry)},\n" for entry in value) + "]"


def main() -> None:
    """Fit every kind on every device, and write the table."""
    times = read_times()
    text = TARGET.read_text(encoding="utf-8").split(MARK)[0].rstrip() + f"\n\n{MARK}\n"
    kept = []
    for device, kind in sorted({(t.rates.device, t.kind) for t in times}):
        chosen = [t for t in times if (t.rates.device, t.kind) == (device, kind)]
        if len({t.source for t in chosen}) < 2:
            print(f"{device} {kind}: {len(chosen)} times of one source, left out")
            continue
        row = report(chosen, START[device])
        if row["coverage"] < COVERED:
            print(f"{device} {kind}: ranges held only {row['coverage']:.0%}, left out")
            continue
        text += f"\n[device.{device}.{kind}]\n"
        text += "".join(f"{name} = {_written(value)}\n" for name, value in row.items())
        kept.append((device, row))
        print(device, kind, {name: row[name] for name in row if name != "published"})
        shares = Shares(row["flops_share"], row["bandwidth_share"])
        for t in chosen:
            factor = math.exp(_error(t, shares))
            print(f"   {factor:5.2f} {t.seconds:8.4f} s {t.rates.name:10} {t.source[:50]}")
    for device in START:
        rows = [row for name, row in kept if name == device]
        if rows:
            whole = sum(row["rows"] for row in rows)
            held = sum(row["coverage"] * row["rows"] for row in rows) / whole
            print(f"{device}: ranges held {held:.0%} of {whole} times")
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
