"""How true the simulated Mac is: its refusals against torch's own record of what MPS lacks.

    python benchmarks/fidelity.py [--dtype float32 ...] [--ops N] [--samples N] [--json]

For every OpInfo of torch's ``op_db`` and each dtype that it takes on the CPU, the sample inputs
are made and run on the simulated ``mps``. A case counts as refused when one of them raises
NotImplementedError, or TypeError as MPS does for dtypes. That is compared with
UNIMPLEMENTED_XFAILLIST of ``torch.testing._internal.common_mps`` of the installed torch (2.9 and
later ship it). The list is the yardstick only: mpskit does not read it.

A disagreement is a false alarm (refused here, not in the list) or a miss (in the list, not refused
here); each is printed with its explanation from ``fidelity_explanations.toml``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import platform
import sys
import time
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "0")

DTYPES = ("float32", "float16", "bfloat16", "int64", "bool")
LIST = "UNIMPLEMENTED_XFAILLIST"
MACHINE = "m3-max-64gb"
UNEXPLAINED = "not explained"


@dataclasses.dataclass(frozen=True)
class Case:
    """One OpInfo with one dtype: what happened, and what the list expects."""

    op: str
    dtype: str
    refused: bool
    expected: bool
    samples: int
    error: str

    @property
    def kind(self) -> str:
        if self.refused == self.expected:
            return "agreement"
        return "false alarm" if self.refused else "miss"


def yardstick() -> dict[str, list[str] | None]:
    """Return torch's list: OpInfo name -> dtypes (None: every one)."""
    spec = importlib.util.find_spec("torch.testing._internal.common_mps")
    if spec is None or spec.origin is None:
        raise SystemExit("this torch ships no torch.testing._internal.common_mps (it needs 2.9)")
    for node in ast.walk(ast.parse(Path(spec.origin).read_text("utf-8"))):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == LIST:
            if not isinstance(node.value, ast.Dict):
                break
            return dict(_entries(node.value))
    raise SystemExit(f"no {LIST} in {spec.origin}")


def _entries(table: ast.Dict) -> Iterator[tuple[str, list[str] | None]]:
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant):
            dtypes = [part.attr for part in ast.walk(value) if isinstance(part, ast.Attribute)]
            yield str(key.value), None if isinstance(value, ast.Constant) else dtypes


def run_case(info: Any, dtype: Any, samples: int | None) -> tuple[bool, int, str]:
    """Return whether the simulated Mac refuses the OpInfo, the samples run and the error."""
    done, other = 0, ""
    try:
        made = info.sample_inputs("mps", dtype, requires_grad=False)
        for sample in itertools.islice(made, samples):
            done += 1
            try:
                info(sample.input, *sample.args, **sample.kwargs)
            except (NotImplementedError, TypeError):
                raise
            except Exception as error:
                other = other or _brief(error)
    except (NotImplementedError, TypeError) as error:
        return True, done, _brief(error)
    except Exception as error:
        return False, done, _brief(error)
    return False, done, other


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}" if str(error) else ""


def sweep(dtypes: Sequence[str], ops: int | None, samples: int | None) -> list[Case]:
    """Run every case on one simulated machine."""
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    import mpskit

    expected, cases = yardstick(), []
    with mpskit.simulate(MACHINE):
        for name in dtypes:
            dtype = getattr(torch, name)
            infos = [info for info in op_db if dtype in info.supported_dtypes("cpu")]
            for number, info in enumerate(infos[:ops]):
                if number % 100 == 0:
                    print(f"{name}: {number} of {len(infos[:ops])}", file=sys.stderr)
                key = info.name + info.variant_test_name
                torch.manual_seed(0)
                refused, done, error = run_case(info, dtype, samples)
                listed = key in expected and (expected[key] is None or name in expected[key])
                cases.append(Case(key, name, refused, listed, done, error))
    return cases


def explain(case: Case) -> str:
    """Return why a case disagrees, from the data file."""
    for row in _explanations():
        fits = case.op in row["ops"] and case.kind == row["kind"]
        if fits and case.dtype in row.get("dtypes", DTYPES):
            return str(row["why"])
    return UNEXPLAINED


def _explanations() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("fidelity_explanations.toml").read_text("utf-8")
    return list(tomllib.loads(text)["explained"])


def summary(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Return one row for each dtype, and one for all."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.dtype, []).append(case)
    rows = [_row(name, group) for name, group in groups.items()]
    return [*rows, _row("all", [case for group in groups.values() for case in group])]


def _row(name: str, cases: Sequence[Case]) -> dict[str, Any]:
    kinds = [case.kind for case in cases]
    agreement = kinds.count("agreement")
    return {
        "dtype": name,
        "cases": len(cases),
        "agree": agreement,
        "percent": round(100 * agreement / max(1, len(cases)), 2),
        "false alarms": kinds.count("false alarm"),
        "misses": kinds.count("miss"),
        "samples": sum(case.samples for case in cases),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *[[str(value) for value in row.values()] for row in rows]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def report(cases: Sequence[Case], seconds: float) -> str:
    """Return the whole report as Markdown."""
    import torch

    odd = [case for case in cases if case.kind != "agreement"]
    here = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    head = f"torch {torch.__version__}, {here}, machine {MACHINE}, {seconds:.0f} s"
    lines = [head, "", table(summary(cases))]
    if odd:
        lines += ["", "| op | dtypes | disagreement | error here | why |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in grouped(odd)]
    return "\n".join(lines)


def grouped(cases: Iterable[Case]) -> list[tuple[str, ...]]:
    """Return one row for the cases that differ in their dtype only."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        key = (case.op, case.kind, case.error[:80] or "-", explain(case))
        groups.setdefault(key, []).append(case.dtype)
    return [(op, ", ".join(d), kind, error, why) for (op, kind, error, why), d in groups.items()]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="simulated MPS coverage against torch's own list")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: all five")
    parser.add_argument("--ops", type=int, help="only the first N OpInfos of each dtype")
    parser.add_argument("--samples", type=int, help="only the first N samples of each OpInfo")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and print it."""
    options = arguments(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    cases = sweep(options.dtype or DTYPES, options.ops, options.samples)
    seconds = time.perf_counter() - start
    if not options.json:
        print(report(cases, seconds))
        return 0
    odd = [case for case in cases if case.kind != "agreement"]
    listed = [{**dataclasses.asdict(c), "kind": c.kind, "why": explain(c)} for c in odd]
    payload = {"schema": 1, "summary": summary(cases), "disagreements": listed}
    print(json.dumps({**payload, "seconds": round(seconds, 1)}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
