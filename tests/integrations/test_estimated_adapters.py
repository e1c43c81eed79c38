"""LoRA by peft on half-precision models of transformers: real steps beside the estimate."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import mpskit
from mpskit import estimate_from_config

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers", minversion="5.0")

pytestmark = pytest.mark.filterwarnings("default")

QWEN = {
    "model_type": "qwen2", "vocab_size": 8000, "hidden_size": 256, "intermediate_size": 1024,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
# For checkpointing: in a step of the small one what torch 2.13's cache rounds up is a fifth.
WIDE = QWEN | {
    "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 8000, "n_embd": 256, "n_layer": 6, "n_head": 4}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = 2


def trained(
    config: dict[str, Any], base: str, precision: str, lora: dict[str, Any], tokens: int, **options
):
    """Return live and driver memory at the peak of two real steps on a simulated Mac."""
    mixed = DTYPES.get(precision.removesuffix("-mixed"))
    with mpskit.simulate("m3-max-64gb") as mac:
        settings = transformers.AutoConfig.for_model(**config)
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=DTYPES[base])
        settings = peft.LoraConfig(**lora, fan_in_fan_out=config is GPT2)
        model = peft.get_peft_model(model, settings).to("mps").train()
        if options.get("checkpointing"):
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        ids = torch.zeros((BATCH, tokens), dtype=torch.int64, device="mps")
        for _ in range(2):
            with torch.autocast("mps", mixed) if mixed else contextlib.nullcontext():
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return mac.peak_allocated_bytes, mac.peak_driver_bytes


@pytest.mark.parametrize(
    ("config", "base", "precision", "lora", "options"),
    [
        (QWEN, "bf16", "fp32", {"r": 8, "target_modules": ["q_proj", "v_proj"]}, {}),
        (QWEN, "bf16", "bf16-mixed", {"r": 8, "target_modules": ["q_proj", "v_proj"]}, {}),
        (QWEN, "fp16", "fp16-mixed", {"r": 4, "target_modules": ["q_proj", "k_proj"]}, {}),
        (QWEN, "bf16", "fp32",
         {"r": 8, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1}, {}),
        (WIDE, "bf16", "bf16-mixed", {"r": 8, "target_modules": ["v_proj"]},
         {"checkpointing": True}),
        (GPT2, "bf16", "fp32", {"r": 8, "target_modules": ["c_attn"]}, {}),
    ],
)  # fmt: skip
def test_a_half_precision_base_takes_what_was_estimated(
    config: dict[str, Any], base: str, precision: str, lora: dict[str, Any], options: Any
) -> None:
    tokens = 256 if config is WIDE else 128
    live, driver = trained(config, base, precision, lora, tokens, **options)
    need = estimate_from_config(
        config, batch_size=BATCH, seq_len=tokens, lora=lora, base=base, precision=precision,
        device="mps", torch_version=torch.__version__, **options,
    )  # fmt: skip
    assert need.peak_bytes == pytest.approx(live, rel=0.01)
    assert need.driver_bytes == pytest.approx(driver, rel=0.05)
