"""How close an estimate from a config is to the full trace of transformers' model, and its time.

    python benchmarks/bench_reference.py [MODEL ...]

Published shapes of every family (nothing is downloaded: transformers' models are built from their
configs without memory). A row for each model and target: the difference of live peak and driver
memory over all jobs, the worst of them, and the median CPU time of both in the same process.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from results import Column, Plot, Row, Section, Size, Table, median, script  # noqa: E402

from mpskit.estimate import TensorSpec, estimate_from_config  # noqa: E402
from mpskit.estimate.api import trace_training  # noqa: E402
from mpskit.estimate.reference.config import read_config  # noqa: E402

transformers.logging.set_verbosity_error()

BUNDLED = (
    "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B",
    "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M", "google/gemma-3-270m",
    "google/gemma-2-2b", "mistralai/Mistral-7B-v0.3", "openai-community/gpt2",
    "openai-community/gpt2-xl", "google-bert/bert-base-uncased", "FacebookAI/roberta-base",
)  # fmt: skip
# Shapes as the configuration classes have them, or of the config.json on the hub.
OTHERS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-72B": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 8192,
        "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "google/gemma-2b": {
        "model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048,
        "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256,
    },
    "microsoft/Phi-3-mini-128k": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "EleutherAI/pythia-1b": {
        "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 8,
    },
    "facebook/opt-1.3b": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 2048, "ffn_dim": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32,
    },
    "stabilityai/stablelm-3b-4e1t": {
        "model_type": "stablelm", "vocab_size": 50304, "hidden_size": 2560,
        "intermediate_size": 6912, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "tiiuae/falcon-7b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544,
        "num_hidden_layers": 32, "num_attention_heads": 71,
    },
    "mistralai/Mixtral-8x7B": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "google-t5/t5-base": {
        "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072,
        "num_layers": 12, "num_heads": 12,
    },
}  # fmt: skip
RUN_MODELS = (
    "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "google/gemma-3-270m", "openai-community/gpt2",
    "google-bert/bert-base-uncased",
)  # fmt: skip
NOTES = (
    (
        "Published shapes; both sides are estimates, so this shows that the short way says what "
        "the long one says. Jobs: fp32 at 1 x 128 and 4 x 512, bf16 and autocast at 4 x 512, "
        "AdamW; the worst of them, and medians of CPU time from the second estimate of a shape on."
    ),
)
HEADS = {"bert": "MaskedLM", "roberta": "MaskedLM", "t5": "Seq2SeqLM"}
TARGETS = (("cpu", "2.13.0"), ("mps", "2.13.0"), ("mps", "2.14.0"), ("cuda", "2.13.0"))
JOBS = (("fp32", 1, 128), ("fp32", 4, 512), ("bf16", 4, 512), ("bf16-mixed", 4, 512))


def config_of(name: str) -> dict[str, Any]:
    """Return a model's config with the names that transformers expects."""
    spec = OTHERS.get(name) or read_config(name)
    beside = {"parameters", "same_architecture", "source", "architectures"}
    config = {key: value for key, value in spec.items() if key not in beside}
    if config["model_type"] in {"bert", "roberta"}:
        config["architectures"] = [f"{config['model_type'].title()}ForMaskedLM"]
    if config["model_type"] == "gpt2":
        config |= {"n_embd": spec["hidden_size"], "n_layer": spec["num_hidden_layers"]}
        config |= {"n_head": spec["num_attention_heads"], "n_inner": spec["intermediate_size"]}
    return config


def full(config: dict[str, Any], job: tuple[str, int, int], device: str) -> Any:
    """Trace transformers' whole model."""
    precision, batch, tokens = job
    rest = {key: value for key, value in config.items() if key != "model_type"}
    made = transformers.AutoConfig.for_model(config["model_type"], **rest)
    made.decoder_start_token_id = 0
    kind = HEADS.get(config["model_type"], "CausalLM")
    with torch.device("meta"):
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(made)
    spec = TensorSpec((batch, tokens), "int64")
    inputs = {"input_ids": spec, "labels": spec}
    return trace_training(model.train(), inputs, device=device, precision=precision)


def compared(name: str) -> list[Row]:
    """Return a model's rows, one for each target."""
    config = config_of(name)
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {target: [] for target in TARGETS}
    for job in JOBS:
        for device in ("cpu", "mps", "cuda"):
            started = time.process_time()
            try:
                truth = full(config, job, device)
            except Exception as error:  # what cannot be traced is named
                print(f"{name} {device} {job}: no full trace ({error})", file=sys.stderr)
                continue
            traced = time.process_time() - started
            for target in [target for target in TARGETS if target[0] == device]:
                found[target].append((*judged(config, job, target, truth), traced))
    rows = []
    for (device, version), its in found.items():
        if its:
            live, driver = (max((row[column] for row in its), key=abs) for column in (0, 1))
            ours, theirs = (median([row[column] for row in its]) for column in (2, 3))
            values = {
                "case": f"{name}, {device} {version}", "who": "from the config", "live": live,
                "driver": driver, "seconds": ours, "full": theirs,
            }  # fmt: skip
            rows.append(Row(values=values, side="ours"))
    return rows


def judged(
    config: dict[str, Any], job: tuple[str, int, int], target: tuple[str, str], truth: Any
) -> tuple[float, float, float]:
    """Return how far live and driver are off the full trace, and the median CPU time."""
    (precision, batch, tokens), (device, version) = job, target
    whole, times = truth.estimate(version), []
    for _ in range(5):
        started = time.process_time()
        need = estimate_from_config(
            config, batch_size=batch, seq_len=tokens, device=device, precision=precision,
            torch_version=version,
        )  # fmt: skip
        times.append(time.process_time() - started)
    live = need.peak_bytes / whole.peak_bytes - 1
    return live, need.driver_bytes / whole.driver_bytes - 1, median(times)


def section(size: Size, model: Sequence[str] = ()) -> Section:
    """Measure and return the table."""
    names = model or size.of(RUN_MODELS[:1], RUN_MODELS, (*BUNDLED, *OTHERS))
    table = Table(
        columns=(
            Column(key="case", heading="model, target"),
            Column(key="live", heading="live, worst", unit="percent", better="near zero"),
            Column(key="driver", heading="driver, worst", unit="percent", better="near zero"),
            Column(key="seconds", heading="from the config", unit="seconds"),
            Column(key="full", heading="full trace", unit="seconds"),
        ),
        rows=tuple(row for name in names for row in compared(name)),
        who="case",
        plot=Plot(column="seconds", title="CPU time of an estimate from a config"),
    )
    return Section(
        name="reference",
        title="Estimates from a config",
        question="How close is `estimate_from_config` to the full trace of transformers' model?",
        command="python benchmarks/bench_reference.py",
        full="python benchmarks/bench_reference.py --size full",
        page="reference",
        tables=(table,),
        notes=NOTES,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="*", choices=[[], *BUNDLED, *OTHERS])
    script(section, parser)


if __name__ == "__main__":
    main()
