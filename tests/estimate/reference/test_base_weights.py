"""What is frozen under adapters, and in which dtype it lies."""

from __future__ import annotations

import pytest
import torch

from mpskit.errors import ArgumentError
from mpskit.estimate import estimate_from_config
from mpskit.estimate.precisions import BASES
from mpskit.estimate.reference.base_weights import read_base

LLAMA = {
    "model_type": "llama", "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
ADAPTERS = 6 * 2 * 8 * (256 + 256)  # numbers: layers, query and value, rank, in and out


@pytest.mark.parametrize(
    ("precision", "adapters"),
    [("fp32", torch.float32), ("bf16-mixed", torch.float32), ("fp16-mixed", torch.float32),
     ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)  # fmt: skip
def test_adapters_are_float32_unless_the_precision_says_so(
    precision: str, adapters: torch.dtype
) -> None:
    base = read_base("bf16", precision=precision, frozen=True)
    assert base is not None
    assert (base.weights, base.adapters) == (torch.bfloat16, adapters)


def test_none_leaves_it_to_the_precision() -> None:
    assert read_base(None, precision="bf16", frozen=False) is None


@pytest.mark.parametrize("base", ["nf5", "", "BF16", 4, ["bf16"]])
def test_unknown_bases_are_named(base: object) -> None:
    with pytest.raises(ArgumentError, match="one of bf16, fp16"):
        read_base(base, precision="fp32", frozen=True)


def test_weights_that_are_trained_are_no_base() -> None:
    with pytest.raises(ArgumentError, match="give lora= too, or training=False"):
        estimate_from_config(LLAMA, batch_size=1, seq_len=8, base="bf16")


def estimated(**options: object):
    made = {"batch_size": 2, "seq_len": 64, "lora": 8, "device": "cpu"} | options
    return estimate_from_config(LLAMA, **made)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.parametrize("base", ["bf16", "fp16"])
def test_half_of_the_weights_and_all_of_the_adapters(base: str, precision: str) -> None:
    whole = estimated(precision=precision)
    half = estimated(precision=precision, base=base)
    frozen = whole.parameters_bytes - 4 * ADAPTERS
    assert half.parameters_bytes == frozen // 2 + 4 * ADAPTERS
    assert half.optimizer_bytes == whole.optimizer_bytes
    assert half.buffers_bytes == whole.buffers_bytes  # rotary frequencies stay float32
    assert half.base == base
    assert f"{precision} on a {base} base" in str(half)


def test_adapters_in_half_precision_are_the_half_model() -> None:
    both = estimated(precision="bf16", base="bf16")
    plain = estimated(precision="bf16")
    assert both.parameters_bytes == plain.parameters_bytes
    assert both.optimizer_bytes == plain.optimizer_bytes


def test_inference_has_a_base_without_adapters() -> None:
    base = estimated(training=False, lora=None, base="bf16")
    assert base.parameters_bytes == estimated(lora=None, precision="bf16").parameters_bytes


def test_dropout_before_the_adapters_is_kept_for_the_backward_pass() -> None:
    plain = estimated(base="bf16", lora={"r": 8})
    dropped = estimated(base="bf16", lora={"r": 8, "lora_dropout": 0.1})
    # The values and their mask, before 12 adapters; the values replace the cast of the input.
    assert dropped.peak_bytes - plain.peak_bytes >= 12 * 2 * 64 * 256


@pytest.mark.parametrize("dropout", [1, -0.1, "0.1", True])
def test_dropouts_that_are_none(dropout: object) -> None:
    with pytest.raises(ArgumentError, match="lora dropout"):
        estimated(lora={"r": 8, "dropout": dropout})


def test_bases_are_dtypes() -> None:
    assert all(isinstance(getattr(torch, dtype), torch.dtype) for dtype in BASES.values())
