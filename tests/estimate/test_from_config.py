"""``estimate_from_config``: what it takes, and what can be reckoned by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.from_config import estimate_from_config
from mpskit.estimate.result import KINDS

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 5000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 5000, "n_embd": 512, "n_layer": 6, "n_head": 8}


def estimated(config: dict[str, Any] | str = LLAMA, **options: Any) -> Any:
    return estimate_from_config(
        config, **{"batch_size": 1, "seq_len": 64, "device": "cpu"} | options
    )


@pytest.mark.parametrize(
    ("given", "states"),
    [("adamw", 2), ("sgd", 0), ("adagrad", 1), (None, 0), ("AdamW", 2), (torch.optim.Adam, 2),
     (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), 1)],
)  # fmt: skip
def test_optimizer_states(given: Any, states: int) -> None:
    need = estimated(optimizer=given)
    # AdamW counts its steps in 4 bytes for each of the 57 weights.
    assert need.optimizer_bytes == pytest.approx(states * need.parameters_bytes, abs=4 * 57)


def test_adapters_train_alone() -> None:
    base, adapted = estimated(), estimated(lora={"r": 8})
    added = 6 * 2 * 8 * (512 + 512) * 4  # layers, query and value, rank, in and out, fp32
    assert adapted.parameters_bytes == base.parameters_bytes + added
    assert adapted.optimizer_bytes == pytest.approx(2 * added, abs=4 * 24)
    everything = estimated(lora={"rank": 8, "targets": "all-linear"})
    assert everything.optimizer_bytes > adapted.optimizer_bytes


def test_half_precision_halves_the_weights() -> None:
    full, half = estimated(GPT2), estimated(GPT2, precision="bf16")
    assert half.parameters_bytes * 2 == full.parameters_bytes
    large = {"batch_size": 8, "seq_len": 512}
    wide, mixed = estimated(GPT2, **large), estimated(GPT2, precision="bf16-mixed", **large)
    assert mixed.parameters_bytes == wide.parameters_bytes
    assert mixed.peak_bytes < wide.peak_bytes


def test_checkpointing_and_accumulation() -> None:
    large = {"batch_size": 8, "seq_len": 512}
    plain = estimated(**large)
    assert estimated(checkpointing=True, **large).peak_bytes < 0.8 * plain.peak_bytes
    assert estimated(accumulate=4, **large).peak_bytes > plain.peak_bytes  # gradients beside it


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("lora", [None, 8])
def test_a_checkpoint_recomputes_under_autocast(device: str, lora: int | None) -> None:
    """torch restores autocast for the device of the arguments, which lie on the CPU in a trace."""
    large = {"batch_size": 8, "seq_len": 512, "device": device, "lora": lora}
    mixed = estimated(GPT2, precision="bf16-mixed", checkpointing=True, **large)
    assert mixed.peak_bytes < estimated(GPT2, precision="bf16-mixed", **large).peak_bytes


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("training", [True, False])
def test_the_kinds_add_up(device: str, training: bool) -> None:
    need = estimated(device=device, training=training, torch_version="2.13.0")
    assert sum(getattr(need, f"{kind}_bytes") for kind in KINDS) == need.peak_bytes
    assert need.driver_bytes >= need.peak_bytes
    assert need.method == "reference"
    assert need.timeline == ()
    assert need.peak is not None
    assert (need.gradients_bytes > 0 or need.activations_bytes > 0) == training


def test_the_same_call_gives_the_same_bytes() -> None:
    first, second = (estimated("google/gemma-2-2b", device="mps") for _ in range(2))
    assert first == second


def test_random_state_stays() -> None:
    before = torch.get_rng_state()
    estimated(GPT2)
    assert torch.equal(before, torch.get_rng_state())


def test_more_layers_and_tokens_take_more() -> None:
    sizes = [
        estimated(LLAMA | {"num_hidden_layers": layers}, seq_len=tokens).peak_bytes
        for layers, tokens in ((1, 64), (3, 64), (4, 64), (5, 64), (12, 64), (12, 2048))
    ]
    assert sizes == sorted(set(sizes))


def test_each_layer_takes_the_same() -> None:
    depths = [estimated(LLAMA | {"num_hidden_layers": n}).peak_bytes for n in (100, 200, 1024)]
    assert (depths[2] - depths[0]) * 100 == (depths[1] - depths[0]) * 924


def test_notes_reach_the_result() -> None:
    need = estimated(LLAMA | {"mlp_only_layers": [1]})
    assert any("mlp_only_layers" in note for note in need.notes)


def test_one_config_after_another_in_a_thread() -> None:
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(estimated, GPT2).result()
    assert found == estimated(GPT2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"batch_size": 10**30}, ArgumentError, "batch_size"),
        ({"batch_size": 2**62}, ArgumentError, "more than torch can count"),
        ({"batch_size": 1.5}, ArgumentTypeError, "batch_size"),
        ({"seq_len": True}, ArgumentTypeError, "seq_len"),
        ({"accumulate": 0}, ArgumentError, "accumulate"),
        ({"precision": "int4"}, ArgumentError, "int4"),
        ({"device": "hpu"}, ArgumentError, "hpu"),
        ({"implementation": "mine"}, ArgumentError, "implementation"),
        ({"optimizer": "paged_adamw_8bit"}, ArgumentError, "paged_adamw_8bit"),
        ({"optimizer": 3}, ArgumentTypeError, "optimizer"),
        ({"lora": 0}, ArgumentError, "rank"),
        ({"lora": True}, ArgumentError, "rank"),
        ({"lora": {"targets": ["q_proj"]}}, ArgumentError, "rank"),
        ({"lora": {"rank": 4, "targets": ["wq"]}}, ArgumentError, "wq"),
        ({"lora": {"rank": 4, "targets": 7}}, ArgumentTypeError, "targets"),
        ({"lora": "8"}, ArgumentTypeError, "lora"),
        ({"training": []}, ArgumentTypeError, "training"),
        ({"checkpointing": "no"}, ArgumentTypeError, "checkpointing"),
        ({"torch_version": 1}, ArgumentTypeError, "torch_version"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        estimated(**change)
