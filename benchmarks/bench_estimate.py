"""Estimates against the truth, beside what other tools say, and on the target's allocator.

    python benchmarks/bench_estimate.py [CASE ...] [--mac]

Every row is one case of ``estimate_cases``, of ``RUN_CASES`` if it is not ``--size full``. The
truth is measured in a process of its own (``estimate_truth.py``). The last table is the time of an
estimate of four language models at batch 1 x 512 with AdamW. ``--mac`` prints another one instead:
tensors and driver at the peak by torch version, beside what a simulated Mac reports for the same
step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from estimate_cases import CASES, Case
from estimate_cases.case import tokens
from estimate_peers import PEERS
from results import Column, Plot, Row, Section, Size, Table, script

from mpskit.estimate import estimate_training_memory
from mpskit.estimate.api import trace_inference, trace_training
from mpskit.estimate.trace.run import Traced

HERE = Path(__file__).parent
VERSIONS = ("2.12.1", "2.13.0", "2.14.0")
# Every family, and no case that takes more than some seconds or 3 GB.
RUN_CASES = (
    "mlp-sgd", "mlp-adamw-foreach", "mlp-inference", "tabular-adam", "resnet18-foreach",
    "resnet50-bf16-mixed", "vit-small-fused", "lstm-adam", "gru-adam", "gpt2-clipped", "llama-tiny",
    "llama-tiny-bf16", "llama-tiny-generate", "whisper-like", "t5-like", "diffusion-unet",
    "checkpoint", "recommender",
)  # fmt: skip
NOTES = (
    (
        "The truth is the sum of the profiler's `[memory]` events over two real steps on the CPU, "
        "parameters and batch included, each case in a process of its own. `-` where a tool cannot "
        "do the case. The formulas of the peers are in `benchmarks/estimate_peers.py`."
    ),
)
TIMED = {
    "gpt2-small": ("GPT2LMHeadModel", "GPT2Config", {}),
    "qwen2-0.5b": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.2-3b": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2-7b": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
}


def trace(case: Case, device: str) -> Traced:
    if case.inference:
        return trace_inference(
            case.model, case.batch, step=case.step, generate=case.generate, device=device
        )
    return trace_training(
        case.model,
        case.batch,
        step=case.step,
        train_step=case.train_step,
        optimizer=case.optimizer,
        precision=case.precision,
        accumulate=case.accumulate,
        device=device,
    )


def child(script: str, name: str) -> dict[str, Any]:
    """Run one case in a process of its own."""
    command = [sys.executable, str(HERE / script), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peer(name: str, case: Case, truth: int) -> float | None:
    try:
        found = PEERS[name](case)
    except Exception as error:  # a peer that cannot do a case is a result of this benchmark
        print(f"  {name} cannot do {case.name}: {type(error).__name__}", file=sys.stderr)
        return None
    return None if found is None else found / truth - 1


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3%}" if abs(value) < 0.1 else f"{value:+.0%}"


def errors_of(case: Case, methods: Sequence[str]) -> dict[str, float | None]:
    """Return how far mpskit and each peer are off the truth of a case; None: cannot do it."""
    truth = child("estimate_truth.py", case.name)["peak_bytes"]
    ours = trace(case, "cpu").estimate().peak_bytes / truth - 1
    return {"mpskit": ours, **{name: peer(name, case, truth) for name in methods}}


def accuracy(cases: Sequence[Case], methods: Sequence[str]) -> tuple[Table, Table]:
    """Return the summary of the methods, and the error of each case."""
    found = {}
    for case in cases:
        found[case.name] = errors_of(case, methods)
        print(f"  {case.name}: {percent(found[case.name]['mpskit'])}", file=sys.stderr)
    rows = [
        Row(values={"case": case, "who": who, "error": error}, side=side_of(who))
        for case, its in found.items()
        for who, error in its.items()
    ]
    by_case = Table(
        title="Each case",
        columns=(
            Column(key="case", heading="case"),
            Column(key="who", heading="method"),
            Column(
                key="error", heading="error of the peak", unit="percent", better="near zero",
                margin=0.0,
            ),
        ),
        rows=tuple(rows),
        case="case",
        pivot="error",
    )  # fmt: skip
    return summary(found, ("mpskit", *methods)), by_case


def side_of(who: str) -> Literal["ours", "peer"]:
    return "ours" if who == "mpskit" else "peer"


def summary(found: dict[str, dict[str, float | None]], methods: Sequence[str]) -> Table:
    rows = []
    for who in methods:
        errors = [its[who] for its in found.values()]
        values = [error for error in errors if error is not None]
        if values:
            figures = {
                "who": who, "done": len(values) / len(errors),
                "median": statistics.median(map(abs, values)),
                "worst": max(values, key=abs), "under": sum(value < -0.01 for value in values),
            }  # fmt: skip
            rows.append(Row(values=figures, side=side_of(who)))
    return Table(
        columns=(
            Column(key="who", heading="method"),
            Column(key="done", heading="cases it can do", unit="percent", better="high"),
            Column(key="median", heading="median error", unit="percent", better="near zero"),
            Column(key="worst", heading="worst", unit="percent", better="near zero"),
            Column(key="under", heading="under by more than 1%", unit="count", better="low"),
        ),
        rows=tuple(rows),
        plot=Plot(column="worst", title="Largest error of an estimate of a step's peak memory"),
    )


def on_the_mac(cases: Sequence[Case]) -> None:
    print(
        "\n| case | "
        + " | ".join(f"{v} live | driver" for v in VERSIONS)
        + " | simulated live | driver |"
    )
    print("|---" * (1 + 2 * len(VERSIONS) + 2) + "|")
    for case in cases:
        traced = trace(case, "mps")
        cells = []
        for version in VERSIONS:
            told = traced.estimate(version)
            cells += [
                f"{told.peak_bytes / 2**20:.0f}",
                f"{told.driver_bytes / told.peak_bytes - 1:+.0%}",
            ]
        told, mac = traced.estimate(), child("estimate_simulated.py", case.name)
        cells += [
            percent(told.peak_bytes / mac["peak_bytes"] - 1),
            percent(told.driver_bytes / mac["driver_bytes"] - 1),
        ]
        print("| " + " | ".join([case.name, *cells]) + " |", flush=True)


def timed(name: str) -> dict[str, float]:
    import transformers

    kind, config, options = TIMED[name]
    make = lambda: getattr(transformers, kind)(getattr(transformers, config)(**options))  # noqa: E731
    getattr(transformers, kind)
    start = time.perf_counter()
    told = estimate_training_memory(make, tokens(1, 512), device="mps")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": told.peak_bytes, "process_bytes": most_resident()}


def most_resident() -> int:
    """Return the most that this program held; ``ru_maxrss`` counts its parent's too (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def times(names: Sequence[str]) -> Table:
    """Return the time of the first estimate of a process, and what the process took."""
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--timed", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append(Row(values={"who": name, **found}, side="ours"))
    return Table(
        title="Time of an estimate: batch 1 x 512, AdamW, for `mps`",
        columns=(
            Column(key="who", heading="model"),
            Column(key="seconds", heading="first call", unit="seconds"),
            Column(key="peak_bytes", heading="peak estimated", unit="bytes"),
            Column(key="process_bytes", heading="the process took", unit="bytes"),
        ),
        rows=tuple(rows),
    )


def section(size: Size, case: Sequence[str] = (), **_: Any) -> Section:
    """Measure and return the tables."""
    names = case or size.of(RUN_CASES[:2], RUN_CASES, list(CASES))
    cases = [CASES[name] for name in names]
    models = size.of(list(TIMED)[:1], list(TIMED), list(TIMED))
    return Section(
        name="estimate",
        title="Estimates of memory",
        question="How close does an estimate come to what a real step takes?",
        command="python benchmarks/bench_estimate.py",
        full="python benchmarks/bench_estimate.py --size full",
        page="estimate",
        tables=(*accuracy(cases, list(PEERS)), times(models)),
        notes=NOTES,
    )


def instead(options: argparse.Namespace) -> bool:
    """Print what is asked for in place of the section."""
    if options.timed:
        print(json.dumps(timed(options.timed)))
    elif options.mac:
        on_the_mac([CASES[name] for name in options.case or CASES])
    return bool(options.timed or options.mac)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", choices=[[], *CASES])
    parser.add_argument("--mac", action="store_true", help="print the table of the Mac instead")
    parser.add_argument("--timed", choices=TIMED, help=argparse.SUPPRESS)
    script(section, parser, instead)


if __name__ == "__main__":
    main()
