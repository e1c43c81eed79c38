"""How close the closed form is to the traced step, and how long each takes.

    python benchmarks/bench_closed_form.py

Every bundled family at several sizes (nothing is downloaded: the models are built from their
shapes without memory). For each device, precision and batch: the median and the worst difference
of live peak and driver memory, and the median time of both in the same process.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM  # noqa: E402

from mpskit.estimate import TensorSpec, estimate_from_config  # noqa: E402
from mpskit.estimate.api import trace_training  # noqa: E402
from mpskit.estimate.architectures import read_config  # noqa: E402

MODELS = (
    "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B",
    "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "HuggingFaceTB/SmolLM2-135M",
    "google/gemma-3-270m", "google/gemma-3-1b-pt", "google/gemma-2-2b", "mistralai/Mistral-7B-v0.3",
    "openai-community/gpt2", "openai-community/gpt2-xl", "google-bert/bert-base-uncased",
    "google-bert/bert-large-uncased", "FacebookAI/roberta-base",
)  # fmt: skip
TARGETS = (("cpu", "2.13.0"), ("mps", "2.13.0"), ("mps", "2.14.0"), ("cuda", "2.13.0"))
JOBS = (("fp32", 1, 128), ("fp32", 4, 512), ("bf16", 4, 512), ("bf16-mixed", 4, 512))


def config_of(name: str) -> dict[str, Any]:
    """Return a bundled model's config with the names that transformers expects."""
    spec = read_config(name)
    beside = {"parameters", "same_architecture", "source", "architectures"}
    config = {key: value for key, value in spec.items() if key not in beside}
    if config["model_type"] in {"bert", "roberta"}:
        config["architectures"] = [f"{config['model_type'].title()}ForMaskedLM"]
    if config["model_type"] == "gpt2":
        names = {
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
        }
        config |= {short: spec[long] for short, long in names.items()}
    return config


def compare(name: str, job: tuple[str, int, int], device: str, version: str) -> tuple[float, ...]:
    """Return the differences of peak and driver memory, and both times in seconds."""
    precision, batch, tokens = job
    config = config_of(name)
    rest = {key: value for key, value in config.items() if key != "model_type"}
    masked = config["model_type"] in {"bert", "roberta"}
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(config["model_type"], **rest))
    spec = TensorSpec((batch, tokens), "int64")
    inputs = {"input_ids": spec, "labels": spec}
    started = time.process_time()
    truth = trace_training(model, inputs, device=device, precision=precision).estimate(version)
    traced = time.process_time() - started
    times = []
    for _ in range(5):
        started = time.process_time()
        closed = estimate_from_config(
            config, batch_size=batch, seq_len=tokens, device=device, precision=precision,
            torch_version=version,
        )  # fmt: skip
        times.append(time.process_time() - started)
    live = closed.peak_bytes / truth.peak_bytes - 1
    driver = closed.driver_bytes / truth.driver_bytes - 1
    return live, driver, statistics.median(times), traced


def main() -> None:
    """Print one row for each target and job."""
    print("| device | torch | precision | batch | live: median, worst | driver: median, worst "
          "| closed form | traced | ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for device, version in TARGETS:
        for job in JOBS:
            rows = [compare(name, job, device, version) for name in MODELS]
            cells = []
            for column in (0, 1):
                values = [row[column] for row in rows]
                middle = statistics.median(map(abs, values))
                cells.append(f"{middle:.2%}, {max(values, key=abs):+.1%}")
            closed, traced = (statistics.median(row[column] for row in rows) for column in (2, 3))
            first = (
                f"| {device} | {version} | {job[0]} | {job[1]} x {job[2]} | {cells[0]} | {cells[1]}"
            )
            times = f"| {closed * 1e3:.1f} ms | {traced * 1e3:.0f} ms | 1/{traced / closed:.0f} |"
            print(first, times, flush=True)


if __name__ == "__main__":
    main()
