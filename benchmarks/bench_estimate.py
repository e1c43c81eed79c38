"""Estimates against the truth, beside what other tools say, and on the target's allocator.

``python benchmarks/bench_estimate.py [CASE ...] [--no-peers] [--no-large] [--simulated]``

Every row is one case of ``estimate_cases``. The truth is measured in a process of its own
(``estimate_truth.py``). The second table is the Mac: tensors and driver at the peak by torch
version, and with ``--simulated`` what a simulated Mac reports for the same step. The third is the
time of an estimate of four language models at batch 1 x 512 with AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from estimate_cases import CASES, Case
from estimate_cases.case import tokens
from estimate_peers import PEERS

from mpskit.estimate import estimate_training_memory
from mpskit.estimate.api import trace_inference, trace_training
from mpskit.estimate.trace.run import Traced

HERE = Path(__file__).parent
VERSIONS = ("2.12.1", "2.13.0", "2.14.0")
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


def accuracy(cases: list[Case], with_peers: bool) -> None:
    names = list(PEERS) if with_peers else []
    errors: dict[str, list[float]] = {name: [] for name in ("mpskit", *names)}
    print("| case | truth, bytes | " + " | ".join(("mpskit", "seconds", *names)) + " |")
    print("|---|---" * 2 + "|---" * len(names) + "|")
    broken = []
    for case in cases:
        truth = child("estimate_truth.py", case.name)["peak_bytes"]
        start = time.perf_counter()
        error = trace(case, "cpu").estimate().peak_bytes / truth - 1
        seconds = time.perf_counter() - start
        errors["mpskit"].append(error)
        if abs(error) > case.limit:
            broken.append(case.name)
        others = {name: peer(name, case, truth) for name in names}
        for name, value in others.items():
            if value is not None:
                errors[name].append(value)
        cells = [case.name, str(truth), percent(error), f"{seconds:.2f}"]
        print("| " + " | ".join([*cells, *map(percent, others.values())]) + " |", flush=True)
    print()
    summary(errors, len(cases))
    print(f"\nbeyond their limit: {', '.join(broken) or 'none'}")


def summary(errors: dict[str, list[float]], count: int) -> None:
    print("| method | cases it can do | median error | worst | under by more than 1% |")
    print("|---|---|---|---|---|")
    for name, values in errors.items():
        if values:
            worst = max(values, key=abs)
            under = sum(value < -0.01 for value in values)
            median = statistics.median(map(abs, values))
            print(
                f"| {name} | {len(values)} of {count} | {median:.3%} | {percent(worst)} | {under} |"
            )


def on_the_mac(cases: list[Case], simulated: bool) -> None:
    print(
        "\n| case | "
        + " | ".join(f"{v} live | driver" for v in VERSIONS)
        + (" | simulated live | driver |" if simulated else " |")
    )
    print("|---" * (1 + 2 * len(VERSIONS) + 2 * simulated) + "|")
    for case in cases:
        traced = trace(case, "mps")
        cells = []
        for version in VERSIONS:
            told = traced.estimate(version)
            cells += [
                f"{told.peak_bytes / 2**20:.0f}",
                f"{told.driver_bytes / told.peak_bytes - 1:+.0%}",
            ]
        if simulated:
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


def times() -> None:
    print(
        "\n| model, 1 x 512, AdamW | seconds, first call | peak, GB | process, GB |"
        "\n|---|---|---|---|"
    )
    for name in TIMED:
        command = [sys.executable, __file__, "--timed", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        peak, process = found["peak_bytes"] / 1e9, found["process_bytes"] / 1e9
        print(f"| {name} | {found['seconds']:.2f} | {peak:.1f} | {process:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", choices=[[], *CASES])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-large", action="store_true", help="leave out what needs 9 GB")
    parser.add_argument("--simulated", action="store_true", help="compare with a simulated Mac")
    parser.add_argument("--no-times", action="store_true", help="leave out the third table")
    parser.add_argument("--timed", choices=TIMED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.timed:
        print(json.dumps(timed(arguments.timed)))
        return
    cases = [CASES[name] for name in arguments.case or CASES]
    if arguments.no_large:
        cases = [case for case in cases if "large" not in case.tags]
    accuracy(cases, not arguments.no_peers)
    on_the_mac(cases, arguments.simulated)
    if not arguments.no_times:
        times()


if __name__ == "__main__":
    main()
