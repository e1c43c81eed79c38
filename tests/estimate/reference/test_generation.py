"""Decoding with a cache: its lengths, and what can be reckoned by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate import estimate_from_config
from mpskit.estimate.reference.generation import left_out, traced_lengths

LAYERS, HIDDEN = 6, 256
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 2000, "hidden_size": HIDDEN, "intermediate_size": 768,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip


def estimated(config: dict[str, Any] = LLAMA, **options: Any) -> Any:
    made = {"batch_size": 2, "seq_len": 32, "training": False, "device": "cpu"} | options
    return estimate_from_config(config, **made)


@pytest.mark.parametrize(
    ("prompt", "until"), [(8, 8), (8, 9), (8, 10), (8, 32), (8, 33), (8, 5000), (1, 2)]
)
def test_the_last_step_is_one_token(prompt: int, until: int) -> None:
    lengths = traced_lengths(prompt, until)
    assert lengths[0] == prompt
    assert lengths[-1] == until
    assert lengths == sorted(set(lengths))
    assert until == prompt or lengths[-2] == until - 1
    assert bool(left_out(prompt, until)) == (len(lengths) < until - prompt + 1)


def test_the_cache_is_all_that_grows() -> None:
    """Keys and values of each layer and row; one layer's keys exist twice while they grow."""
    short, long = (estimated(cache_len=n).peak_bytes for n in (4096, 8192))
    token = 2 * HIDDEN * 4  # both rows, in fp32
    assert long - short == pytest.approx(4096 * token * (2 * LAYERS + 1), rel=0.01)


def test_a_cache_of_the_prompt_alone_is_the_prefill() -> None:
    """``generate()`` computes the scores of the last token only."""
    whole = estimated(LLAMA | {"vocab_size": 50000})
    prompt = estimated(LLAMA | {"vocab_size": 50000}, cache_len=32)
    assert prompt.peak_bytes < whole.peak_bytes
    assert prompt.parameters_bytes == whole.parameters_bytes


def test_half_precision_halves_the_cache() -> None:
    need = {p: estimated(cache_len=8192, precision=p) for p in ("fp32", "bf16")}
    cache = {p: found.peak_bytes - found.parameters_bytes for p, found in need.items()}
    assert cache["bf16"] == pytest.approx(cache["fp32"] / 2, rel=0.01)
    based = estimated(cache_len=8192, base="bf16")
    rotary = based.buffers_bytes  # float32, as from_pretrained() leaves them
    assert based.peak_bytes == need["bf16"].peak_bytes + rotary // 2


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "falcon", "phi3", "gpt_neox", "opt"])
def test_families_that_decode(family: str, config_of: Any) -> None:
    short, long = (estimated(config_of(family), cache_len=n).peak_bytes for n in (34, 512))
    assert long > short


def test_steps_that_are_left_out_are_noted() -> None:
    assert not any("decoding steps" in note for note in estimated(cache_len=40, device="mps").notes)
    noted = estimated(cache_len=1000, device="mps").notes
    assert any("12 of 968 decoding steps" in note for note in noted)
    assert estimated(cache_len=1000).notes == ()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"cache_len": 16}, ArgumentError, "fewer than the prompt's 32"),
        ({"cache_len": 0}, ArgumentError, "cache_len"),
        ({"cache_len": 64.0}, ArgumentTypeError, "cache_len"),
        ({"cache_len": 64, "training": True}, ArgumentError, "training=False"),
        ({"cache_len": 64, "implementation": "transformers"}, ArgumentError, "cache_len="),
    ],
)
def test_caches_that_cannot_be(change: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        estimated(**change)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_only_decoders_have_one(family: str, config_of: Any) -> None:
    with pytest.raises(ArgumentError, match="decoder alone"):
        estimated(config_of(family), cache_len=64)


def test_a_window_shorter_than_the_cache_is_refused(config_of: Any) -> None:
    config = config_of("mistral", sliding_window=48)
    assert estimated(config, cache_len=40).peak_bytes > 0
    with pytest.raises(ArgumentError, match="sliding window"):
        estimated(config, cache_len=64)
    with pytest.raises(ArgumentError, match="more than the model's 1024 positions"):
        estimated(config_of("gpt2"), cache_len=1025)
