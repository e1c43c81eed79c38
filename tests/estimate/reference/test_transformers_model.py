"""transformers' own class, traced at three layers, against all of its layers."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mpskit.errors import ArgumentError
from mpskit.estimate import TensorSpec, estimate_from_config, estimate_training_memory

OTHER = {
    "model_type": "olmo2", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 7, "num_attention_heads": 4,
}  # fmt: skip


def estimated(config: dict[str, Any], **options: Any) -> Any:
    options = {"device": "cpu", "implementation": "transformers", **options}
    return estimate_from_config(config, batch_size=2, seq_len=64, **options)


@pytest.mark.parametrize(
    ("family", "name"),
    [("qwen2", "Qwen2ForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM"),
     ("falcon", "FalconForCausalLM"), ("t5", "T5ForConditionalGeneration")],
)  # fmt: skip
def test_as_all_of_its_layers(family: str, name: str, config_of: Any, model_of: Any) -> None:
    spec = TensorSpec((2, 64), "int64")
    inputs = {"input_ids": spec, "labels": spec}
    truth = estimate_training_memory(model_of(family), inputs, device="cpu")
    need = estimated(config_of(family, architectures=[name]))
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=1e-4)
    assert need.parameters_bytes == truth.parameters_bytes


def test_a_family_outside_the_table() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ArgumentError, match="olmo2"):
        estimated(OTHER, implementation="reference")
    need = estimated(OTHER)
    assert need.parameters_bytes > 7 * 4 * (4 * 64 * 64 + 3 * 64 * 128)
    assert estimated(OTHER, checkpointing=True).peak_bytes < need.peak_bytes


@pytest.mark.parametrize(
    ("change", "text"),
    [({"model_type": "no_such"}, "transformers cannot build it"),
     ({"model_type": None}, "transformers cannot build it"),
     ({"num_hidden_layers": "two"}, "transformers cannot build it"),
     ({"model_type": "gemma2", "sliding_window": 8, "num_key_value_heads": 2}, "several kinds")],
)  # fmt: skip
def test_what_transformers_refuses(change: dict[str, Any], text: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ArgumentError, match=text):
        estimated(OTHER | change)


def test_adapters_are_refused() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ArgumentError, match="trace the peft model instead"):
        estimated(OTHER, lora=8)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ArgumentError, match="pip install transformers"):
        estimated(OTHER)
