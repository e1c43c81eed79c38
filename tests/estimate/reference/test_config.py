"""Reading configs: bundled models, files, families, what is noted and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.reference.config import read_lora, read_shape

TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BARE = {key: value for key, value in TINY.items() if key != "model_type"}
GPT2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}


def read(config: Any, tokens: int = 8) -> Any:
    return read_shape(config, tokens=tokens)


@pytest.mark.parametrize("key", list(TINY))
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in TINY.items() if name != key}
    with pytest.raises(ArgumentError, match=f"no '{key}'"):
        read(config)


def test_a_missing_key_is_named_as_the_family_calls_it() -> None:
    with pytest.raises(ArgumentError, match="no 'n_layer'"):
        read({key: value for key, value in GPT2.items() if key != "n_layer"})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": 0}, "hidden_size is a whole number"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": "64"}, "not '64'"),
        ({"hidden_size": [64]}, "not list"),
        ({"hidden_size": 10**12}, "from 1 to 2"),
        ({"num_hidden_layers": True}, "not True"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"attention_dropout": 1.5}, "attention_dropout is a number from 0 to 1"),
        ({"attention_dropout": [0.1]}, "not list"),
        ({"tie_word_embeddings": "false"}, "true or false, not 'false'"),
        ({"use_sliding_window": "false"}, "true or false"),
        ({"hidden_act": ["silu"]}, "hidden_act is a name, not list"),
        ({"architectures": "Qwen2ForCausalLM"}, "list of names"),
        ({"architectures": [["Qwen2ForCausalLM"]]}, "list of names"),
        ({"final_logit_softcapping": -1}, "positive number"),
        ({"model_type": 3}, "model_type"),
        ({"model_type": ["qwen2"]}, "model_type"),
    ],
)
def test_wrong_values(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        read(TINY | change)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (TINY | {"model_type": "mamba"}, "mamba"),
        (TINY | {"model_type": "default"}, "default"),
        (TINY | {"architectures": ["Qwen2ForTokenClassification"]}, "Qwen2ForTokenClassification"),
        (TINY | {"vision_config": {"hidden_size": 8}}, "a vision tower"),
        (TINY | {"quantization_config": {"bits": 4}}, "quantized weights"),
        (TINY | {"num_hidden_layers": 100_000}, "100000 layers"),
        (TINY | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
         "some layers see 4 of 8 tokens"),
        (TINY | {"model_type": "gemma2", "sliding_window": 8}, "some layers see 8 of 8"),
        (BARE | {"model_type": "falcon", "alibi": True}, "alibi = True"),
        (BARE | {"model_type": "opt", "ffn_dim": 8, "do_layer_norm_before": False}, "before"),
        (BARE | {"model_type": "stablelm", "num_key_value_heads": 4, "qk_layernorm": True}, "qk"),
        (BARE | {"model_type": "bert", "architectures": ["BertForPreTraining"]}, "PreTraining"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text) as caught:
        read(config)
    assert "trace the model instead" in str(caught.value)


def test_more_tokens_than_learned_positions() -> None:
    assert read(GPT2, 1024).positions == 1024
    with pytest.raises(ArgumentError, match="1025 tokens are more than the model's 1024"):
        read(GPT2, 1025)
    roberta = BARE | {"model_type": "roberta", "max_position_embeddings": 514}
    assert read(roberta, 512).positions == 514
    with pytest.raises(ArgumentError, match="512 positions"):
        read(roberta, 513)


def test_what_is_noted() -> None:
    assert read(TINY).notes == ()
    assert read(TINY | {"rms_norm_eps": 1e-6, "use_cache": True, "bos_token_id": 1}).notes == ()
    assert "made for" in read(TINY | {"max_position_embeddings": 4}).notes[0]
    assert "mlp_only_layers" in read(TINY | {"mlp_only_layers": [1]}).notes[0]


def test_windows() -> None:
    mistral = TINY | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8}
    assert not read(mistral, 7).masked
    assert read(mistral, 8).masked
    assert not read(TINY | {"sliding_window": 4}, 8).masked  # Qwen has to switch it on
    assert not read(TINY | {"model_type": "gemma2", "sliding_window": 8}, 7).masked


def test_from_a_file_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    wanted = read(TINY)
    assert read(tmp_path) == read(tmp_path / "config.json") == wanted
    assert read(str(tmp_path)) == wanted


@pytest.mark.parametrize("text", ["[1]", "{", "\x00", '"text"', "[" * 100_000])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=r"config\.json"):
        read(path)


@pytest.mark.parametrize("name", ["no-such/model", "x" * 5000, "a/" * 3000, "nul\0l"])
def test_neither_a_model_nor_a_file(name: str) -> None:
    with pytest.raises(ArgumentError, match="neither a bundled model") as caught:
        read(name)
    assert len(str(caught.value)) < 800


def test_something_else() -> None:
    with pytest.raises(ArgumentTypeError, match="int"):
        read(7)


def test_a_deep_config_is_not_shown() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for change in ({"hidden_size": deep}, {"architectures": deep}, {"vision_config": deep}):
        with pytest.raises(ArgumentError) as caught:
            read(TINY | change)
        assert len(str(caught.value)) < 300


def test_families_differ_where_memory_can_tell() -> None:
    llama = read(BARE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True})
    assert set(llama.columns["bias"]) == {"qkv", "out", "mlp"}
    assert not llama.tied
    gemma = read(BARE | {"model_type": "gemma"})
    assert (gemma.head_width, gemma.tied, gemma.columns["norm"]) == (256, True, "rms-plus-one")
    gpt2 = read(GPT2)
    assert (gpt2.inner, gpt2.positions, gpt2.head) == (32, 1024, "causal")
    neox = read(BARE | {"model_type": "gpt_neox", "rotary_pct": 0.5})
    assert (neox.turned, neox.columns["residual"]) == (8, "parallel")
    nested = {"rope_parameters": {"partial_rotary_factor": 1.0}}
    assert read(BARE | {"model_type": "gpt_neox"} | nested).turned == 16
    text = {"model_type": "gemma3", "text_config": BARE | {"model_type": "gemma3_text"}}
    assert read(text).columns["residual"] == "sandwich"
    t5 = {"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 16,
          "num_layers": 2, "num_heads": 2, "num_decoder_layers": 3}  # fmt: skip
    assert (read(t5).layers, read(t5).head) == ((2, 3), "generation")
    assert read(t5 | {"architectures": ["T5WithLMHeadModel"]}).head == "generation"
    gated = read(t5 | {"feed_forward_proj": "gated-gelu"})
    assert (gated.columns["mlp"], gated.activation) == ("gated", "gelu_new")


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("BertForMaskedLM", "masked"), ("BertForSequenceClassification", "classes"),
     ("BertModel", "none")],
)  # fmt: skip
def test_the_class_says_what_stands_on_top(architecture: str, head: str) -> None:
    config = BARE | {"model_type": "bert", "architectures": [architecture]}
    assert read(config).head == head


def test_adapters() -> None:
    shape = read(TINY)
    assert read_lora(shape, None) is None
    roles = {
        8: {"query", "value"},
        "all-linear": {"query", "key", "value", "out", "gate", "up", "down"},
        "o_proj": {"out"},
    }
    for asked, wanted in roles.items():
        lora = asked if isinstance(asked, int) else {"r": 8, "targets": asked}
        found = read_lora(shape, lora)
        assert found is not None
        assert (found.rank, found.roles) == (8, wanted)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5000), st.floats(), st.sampled_from(["", "silu", "a-b"]),
    st.lists(st.integers(), max_size=2), st.just({"partial_rotary_factor": "x"}),
)  # fmt: skip
_KEYS = [*TINY, "architectures", "head_dim", "id2label", "sliding_window", "layer_types", "x",
         "rope_parameters", "hidden_act", "tie_word_embeddings", "text_config"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES), st.sampled_from(["qwen2", "bert", "t5"]))
def test_any_config_is_read_or_refused(config: dict[str, Any], family: str) -> None:
    try:
        shape = read({**TINY, "model_type": family, **config})
    except ArgumentError:
        return
    assert min(shape.layers) >= 1


@pytest.mark.parametrize(
    ("kinds", "windowed"),
    [(["full_attention"] * 2, False), (["sliding_attention"] * 2, True)],
)
def test_layers_of_one_kind_have_its_mask(kinds: list[str], windowed: bool) -> None:
    config = TINY | {"layer_types": kinds, "sliding_window": 4, "use_sliding_window": True}
    assert read(config).masked is windowed


def test_layers_of_two_kinds_are_refused_where_the_window_matters() -> None:
    config = TINY | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    with pytest.raises(ArgumentError, match="some layers see 4 of 8 tokens"):
        read(config)
    assert read(config, tokens=3).masked is False
