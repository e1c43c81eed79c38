"""A tiny config of every family, and transformers' own model of it on ``meta``."""

from __future__ import annotations

from typing import Any

import pytest

SHAPE: dict[str, Any] = {
    "vocab_size": 5000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": SHAPE | {"num_key_value_heads": 2},
    "qwen3": SHAPE | {"num_key_value_heads": 2, "head_dim": 128},
    "llama": SHAPE | {"num_key_value_heads": 2, "attention_bias": True},
    "mistral": SHAPE | {"num_key_value_heads": 2},
    "mixtral": SHAPE | {"num_key_value_heads": 2, "num_local_experts": 4},
    "gemma": SHAPE | {"num_key_value_heads": 1, "head_dim": 64},
    "gemma2": SHAPE | {"num_key_value_heads": 2, "head_dim": 64},
    "gemma3_text": SHAPE | {"num_key_value_heads": 2, "head_dim": 64},
    "phi3": SHAPE | {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt_neox": SHAPE,
    "stablelm": SHAPE | {"num_key_value_heads": 2},
    "falcon": {key: SHAPE[key] for key in SHAPE if key != "intermediate_size"},
    "gpt2": {"vocab_size": 5000, "n_embd": 256, "n_layer": 7, "n_head": 4},
    "opt": {
        "vocab_size": 5000, "hidden_size": 256, "ffn_dim": 768, "num_hidden_layers": 7,
        "num_attention_heads": 4,
    },
    "bert": SHAPE,
    "roberta": SHAPE | {"max_position_embeddings": 514},
    "t5": {
        "vocab_size": 5000, "d_model": 256, "d_kv": 64, "d_ff": 768, "num_layers": 7,
        "num_heads": 4,
    },
}  # fmt: skip
HEADS = {"bert": "MaskedLM", "roberta": "MaskedLM", "t5": "Seq2SeqLM"}


@pytest.fixture
def config_of():
    """``config_of(family, **changes)``: a family's config as mpskit takes it."""

    def config(family: str, **changes: Any) -> dict[str, Any]:
        named = {"architectures": ["ForMaskedLM"]} if HEADS.get(family) == "MaskedLM" else {}
        return {"model_type": family, **named, **CONFIGS[family], **changes}

    return config


@pytest.fixture
def model_of():
    """``model_of(family, **changes)``: transformers' model in training mode, on ``meta``."""
    import torch

    transformers = pytest.importorskip("transformers", minversion="5.0")

    def model(family: str, **changes: Any) -> Any:
        made = transformers.AutoConfig.for_model(family, **CONFIGS[family] | changes)
        made.decoder_start_token_id = 0
        made.bos_token_id = made.eos_token_id = None
        kind = HEADS.get(family, "CausalLM")
        with torch.device("meta"):
            return getattr(transformers, f"AutoModelFor{kind}").from_config(made).train()

    return model
