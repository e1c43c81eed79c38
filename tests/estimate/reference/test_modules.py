"""Every family's reference against the full trace of transformers' own model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpskit._base.data import read_toml
from mpskit.errors import ArgumentError
from mpskit.estimate import (
    TensorSpec,
    estimate_from_config,
    estimate_inference_memory,
    estimate_training_memory,
)
from mpskit.estimate.reference.config import model_names, read_config, read_shape
from mpskit.estimate.reference.modules import build_reference

FAMILIES = [name for name in read_toml("model_families.toml") if name not in {"keys", "default"}]
# Keys of a config that change the family's columns.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "parallel stablelm": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "serial gpt_neox": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon's new architecture": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "serial falcon": ("falcon", {"parallel_attn": False}),
    "tied qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "gated t5": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "windowed mistral": ("mistral", {"sliding_window": 32}),
    "phi3 with dropout": ("phi3", {"resid_pdrop": 0.1, "attention_dropout": 0.1}),
    "shallow llama": ("llama", {"num_hidden_layers": 2}),
    "quick gelu": ("gpt_neox", {"hidden_act": "quick_gelu"}),
    "gemma2 with a key for each query": ("gemma2", {"num_key_value_heads": 4}),
}
# On the CPU and on CUDA the peak is a sum. On MPS up to 2.13 a request may take a cached buffer
# that is up to 32 MiB larger, which is much beside models of this size.
LIVE = {"cpu": 0.001, "cuda": 0.002, "mps": 0.01}


def traced(model: Any, device: str, **options: Any) -> Any:
    spec = TensorSpec((2, 128), "int64")
    inputs = {"input_ids": spec, "labels": spec}
    return estimate_training_memory(model, inputs, device=device, **options)


def estimated(config: dict[str, Any], device: str, **options: Any) -> Any:
    return estimate_from_config(config, batch_size=2, seq_len=128, device=device, **options)


def precision_of(family: str) -> str:
    return "bf16" if family == "mixtral" else "fp32"  # the meta kernel of grouped_mm knows bf16


# Each model is traced whole, layer by layer: on the CPU and MPS in every run, on CUDA in the full.
@pytest.mark.parametrize("device", ["cpu", "mps", pytest.param("cuda", marks=pytest.mark.full)])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_full_trace(family: str, device: str, config_of: Any, model_of: Any) -> None:
    precision = precision_of(family)
    truth = traced(model_of(family), device, precision=precision)
    need = estimated(config_of(family), device, precision=precision)
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=LIVE[device])
    assert need.parameters_bytes == truth.parameters_bytes
    assert need.gradients_bytes == truth.gradients_bytes
    assert need.optimizer_bytes == pytest.approx(truth.optimizer_bytes, rel=1e-4)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_keys_that_change_a_family(name: str, config_of: Any, model_of: Any) -> None:
    family, changes = VARIANTS[name]
    truth = traced(model_of(family, **changes), "cpu")
    need = estimated(config_of(family, **changes), "cpu")
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.005)
    assert need.parameters_bytes == truth.parameters_bytes


# bf16 is float32 with half the bytes; autocast has copies of its own.
@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.full), "bf16-mixed"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral"])
def test_precisions(family: str, precision: str, config_of: Any, model_of: Any) -> None:
    truth = traced(model_of(family), "cpu", precision=precision)
    need = estimated(config_of(family), "cpu", precision=precision)
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.002)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "falcon", "bert", "t5"])
def test_checkpointing_and_accumulation(family: str, config_of: Any, model_of: Any) -> None:
    model = model_of(family)
    truth = traced(model, "cpu", accumulate=2)
    need = estimated(config_of(family), "cpu", accumulate=2)
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.001)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    truth = traced(model, "cpu")
    need = estimated(config_of(family), "cpu", checkpointing=True)
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.01)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "falcon", "bert"])
def test_a_forward_pass(family: str, config_of: Any, model_of: Any) -> None:
    spec = TensorSpec((2, 128), "int64")
    truth = estimate_inference_memory(model_of(family).eval(), {"input_ids": spec}, device="cpu")
    need = estimated(config_of(family), "cpu", training=False)
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("BertModel", "AutoModel"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
    ],
)
def test_what_stands_on_an_encoder(architecture: str, kind: str, config_of: Any) -> None:
    """A pooled first token alone, or classes on top of it."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = config_of("bert", architectures=[architecture])
    given = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, kind).from_config(given).eval()
    spec = TensorSpec((2, 128), "int64")
    truth = estimate_inference_memory(model, {"input_ids": spec}, device="cpu")
    need = estimated(config, "cpu", training=False)
    assert need.parameters_bytes == truth.parameters_bytes
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.02)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("family", "targets"),
    [("qwen2", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"]), ("bert", ["query", "value"]),
     ("t5", ["q", "v"]), ("qwen2", ["gate_proj", "up_proj", "down_proj"])],
)  # fmt: skip
def test_adapters_as_peft_has_them(
    family: str, targets: list[str], config_of: Any, model_of: Any
) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=8, target_modules=targets, fan_in_fan_out=family == "gpt2")
    with torch.device("meta"):
        model = peft.get_peft_model(model_of(family), settings)
    truth = traced(model, "cpu")
    need = estimated(config_of(family), "cpu", lora={"r": 8, "target_modules": targets})
    assert need.peak_bytes == pytest.approx(truth.peak_bytes, rel=0.005)
    assert need.parameters_bytes == truth.parameters_bytes
    assert need.optimizer_bytes == pytest.approx(truth.optimizer_bytes, rel=1e-3)


@pytest.mark.parametrize("name", model_names())
def test_bundled_models_have_their_published_number_of_parameters(name: str) -> None:
    shape = read_shape(name, tokens=8)
    model = build_reference(shape, depth=max(shape.layers)).model
    assert sum(p.numel() for p in model.parameters()) == read_config(name)["parameters"]


def test_an_unknown_activation_is_refused(config_of: Any) -> None:
    with pytest.raises(ArgumentError, match=r"'laplace'.*trace the model instead"):
        estimated(config_of("llama", hidden_act="laplace"), "cpu")
