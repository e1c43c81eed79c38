"""Reading configs: bundled models, files, families, and what is wrong with a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.architectures import model_names, read_architecture, read_config
from mpskit.estimate.from_config import _weights
from mpskit.estimate.repeat_layers import SKETCHED
from mpskit.estimate.transformer import Transformer

TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("name", model_names())
def test_bundled_models_have_their_published_number_of_parameters(name: str) -> None:
    arch = read_architecture(name)
    layers = min(arch.layers, SKETCHED)
    model = Transformer(arch, layers, 1, 8, item=4, lora=None, mps=False)
    assert sum(param.numel for param in _weights(model)) == read_config(name)["parameters"]


@pytest.mark.parametrize(
    "key",
    ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
     "num_attention_heads"],
)  # fmt: skip
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in TINY.items() if name != key}
    with pytest.raises(ArgumentError, match=f"no '{key}'") as caught:
        read_architecture(config)
    assert caught.value.given == config


def test_a_missing_key_is_named_as_the_family_calls_it() -> None:
    with pytest.raises(ArgumentError, match="no 'n_layer'"):
        read_architecture({"model_type": "gpt2", "vocab_size": 10, "n_embd": 8, "n_head": 2})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"attention_dropout": 1.5}, "attention_dropout"),
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": 3}, "model_type"),
    ],
)
def test_wrong_values(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        read_architecture(TINY | change)


def test_from_a_file_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    wanted = read_architecture(TINY)
    assert read_architecture(tmp_path) == read_architecture(tmp_path / "config.json") == wanted
    assert read_architecture(str(tmp_path)) == wanted


@pytest.mark.parametrize("text", ["[1]", "{", "\x00", '"text"'])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=r"config\.json"):
        read_architecture(path)


def test_neither_a_model_nor_a_file() -> None:
    with pytest.raises(ArgumentError, match="neither a bundled model"):
        read_architecture("no-such/model")
    with pytest.raises(ArgumentTypeError, match="int"):
        read_architecture(7)  # type: ignore[arg-type]


def test_families_differ_where_memory_can_tell() -> None:
    base = {name: value for name, value in TINY.items() if name != "model_type"}
    llama = read_architecture(base | {"model_type": "llama", "attention_bias": True})
    assert llama.bias == {"qkv", "out"}
    assert not llama.tied
    assert read_architecture(TINY).bias == {"qkv"}
    gemma = read_architecture(base | {"model_type": "gemma"})
    assert (gemma.head_width, gemma.tied, gemma.norm) == (256, True, "rms-plus-one")
    gpt2 = read_architecture({"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1,
                              "n_head": 2})  # fmt: skip
    assert (gpt2.inner, gpt2.positions, gpt2.head) == (32, 1024, "causal")
    multimodal = {"model_type": "gemma3", "text_config": base | {"model_type": "gemma3_text"}}
    assert read_architecture(multimodal).sandwich


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("BertForMaskedLM", "masked"), ("BertForSequenceClassification", "classes"),
     ("BertModel", "none"), ("BertForPreTraining", "masked")],
)  # fmt: skip
def test_the_class_says_what_stands_on_top(architecture: str, head: str) -> None:
    config = TINY | {"model_type": "bert", "architectures": [architecture]}
    assert read_architecture(config).head == head


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5000), st.floats(), st.text(max_size=5)
)


@given(st.dictionaries(st.sampled_from([*TINY, "architectures", "head_dim", "id2label"]), _VALUES))
def test_any_config_is_read_or_refused(config: dict[str, Any]) -> None:
    try:
        arch = read_architecture(TINY | config)
    except ArgumentError:
        return
    assert arch.layers >= 1
