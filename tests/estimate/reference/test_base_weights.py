"""What is frozen under adapters, and in which dtype it lies."""

from __future__ import annotations

import pytest
import torch

from mpskit.backends.precisions import BASES
from mpskit.errors import ArgumentError
from mpskit.estimate import (
    TensorSpec,
    estimate_from_config,
    estimate_inference_memory,
    estimate_training_memory,
)
from mpskit.estimate.reference.base_weights import Quantized, read_base

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
    base = read_base("bf16", precision=precision, frozen=True, device="mps")
    assert base is not None
    assert (base.weights, base.adapters) == (torch.bfloat16, adapters)


def test_none_leaves_it_to_the_precision() -> None:
    assert read_base(None, precision="bf16", frozen=False, device="mps") is None


@pytest.mark.parametrize("base", ["nf5", "", "BF16", 4, ["bf16"]])
def test_unknown_bases_are_named(base: object) -> None:
    with pytest.raises(ArgumentError, match="one of bf16, fp16"):
        read_base(base, precision="fp32", frozen=True, device="mps")


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
    named = [dtype for dtype in BASES.values() if dtype is not None]
    assert all(isinstance(getattr(torch, dtype), torch.dtype) for dtype in named)


LINEAR = 6 * (4 * 256 * 256 + 3 * 256 * 768)  # numbers in the layers' projections
OUTPUTS = 6 * (6 * 256 + 2 * 768 - 256)  # their rows: q, k, v, o, down; gate and up
REST = 2 * 2000 * 256 + (2 * 6 + 1) * 256  # embedding, head and norms


@pytest.mark.parametrize(
    ("base", "stored"),
    [("bf16", 2 * LINEAR), ("int8", LINEAR + 4 * OUTPUTS),
     ("nf4", LINEAR // 2 + 4 * LINEAR // 64 + 6 * 7 * 16 * 4)],
)  # fmt: skip
def test_stored_bytes(base: str, stored: int) -> None:
    need = estimated(base=base)
    assert need.parameters_bytes == stored + 2 * REST + 4 * ADAPTERS
    assert need.optimizer_bytes == estimated(base="bf16").optimizer_bytes


@pytest.mark.parametrize(
    ("base", "device", "forward", "backward"),
    [  # bytes for each number of the weight: codes of int32 and int64 beside float32 values
       ("nf4", "mps", 16, 16), ("nf4", "cuda", 2, 2),
       # the weight in float32; in half precision for the gradient
       ("int8", "mps", 4, 2), ("int8", "cuda", 0, 2)],
)  # fmt: skip
def test_one_weight_at_a_time_is_unpacked(
    base: str, device: str, forward: int, backward: int
) -> None:
    found = read_base(base, precision="bf16-mixed", frozen=True, device=device)
    assert found is not None
    module = Quantized(torch.nn.Linear(1024, 2048, bias=False, device="meta"), found)
    rows = TensorSpec((8, 1024), "bfloat16")
    called = estimate_inference_memory(module, rows, device="cuda")
    trained = estimate_training_memory(
        module, rows, optimizer=None, device="cuda",
        step=lambda model, x: model(x.requires_grad_()).sum(),
    )  # fmt: skip
    numbers = 1024 * 2048
    assert called.peak_bytes - called.parameters_bytes == pytest.approx(
        forward * numbers, abs=0.2 * numbers
    )
    assert trained.peak_bytes - trained.parameters_bytes == pytest.approx(
        max(forward, backward) * numbers, abs=0.2 * numbers
    )


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_quantized_weights_take_less(base: str, checkpointing: bool, device: str) -> None:
    options = {"checkpointing": checkpointing, "device": device, "precision": "bf16-mixed"}
    quantized, half = (estimated(base=name, **options) for name in (base, "bf16"))
    assert quantized.parameters_bytes < 0.75 * half.parameters_bytes
    assert quantized.optimizer_bytes == half.optimizer_bytes


def test_transposed_projections_are_quantized_too() -> None:
    gpt2 = {"model_type": "gpt2", "vocab_size": 2000, "n_embd": 256, "n_layer": 6, "n_head": 4}
    options = {"batch_size": 2, "seq_len": 64, "lora": {"r": 8, "targets": ["c_attn"]}}
    half, small = (estimate_from_config(gpt2, base=b, **options) for b in ("fp16", "nf4"))
    numbers = 6 * (3 + 1 + 4 + 4) * 256 * 256
    saved = 2 * numbers - (numbers // 2 + 4 * numbers // 64 + 6 * 4 * 16 * 4)
    assert half.parameters_bytes - small.parameters_bytes == saved
