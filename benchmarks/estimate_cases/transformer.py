"""Language models from transformers' configs: nothing is downloaded."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from estimate_cases.case import Case, spec, tokens

__all__ = ["CASES"]


def gpt2(**options: Any) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**options))


def gpt2_checkpointed() -> torch.nn.Module:
    model = gpt2(use_cache=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def bert() -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig())


def llama_tiny(**options: Any) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1376}
    shape = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**small, **shape, **options))


def llama_eager() -> torch.nn.Module:
    return llama_tiny(attn_implementation="eager")


def qwen2_half() -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def qwen2_lora() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(qwen2_half(), LoraConfig(r=8, target_modules=names))


def whisper() -> torch.nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    widths = {"d_model": 256, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024}
    depths = {"encoder_layers": 4, "decoder_layers": 4}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return WhisperForConditionalGeneration(WhisperConfig(**widths, **depths, **heads))


def t5() -> torch.nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(d_model=512, d_ff=2048, num_layers=4, num_heads=8, decoder_start_token_id=0)
    )


def clipped(model: Any, batch: Any, optimizer: Any) -> None:
    """A user's own step: clipping, and the loss read for the log."""
    loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    _ = loss.item()  # as a loop does that logs it


adamw, sgd = torch.optim.AdamW, torch.optim.SGD
MASKED = {**tokens(4, 128), "attention_mask": spec(4, 128, dtype="int64")}
SPEECH = {"input_features": spec(2, 80, 3000), "labels": spec(2, 64, dtype="int64")}
CLASSES = {**tokens(16, 256, labels=False), "labels": spec(16, dtype="int64")}

CASES = [
    Case("gpt2-2x256", "transformer", gpt2, tokens(2, 256)),
    Case("gpt2-1x512", "transformer", gpt2, tokens(1, 512)),
    Case("gpt2-checkpointed", "transformer", gpt2_checkpointed, tokens(4, 512)),
    Case("gpt2-clipped", "transformer", gpt2, tokens(1, 256), train_step=clipped),
    Case("gpt2-bf16-mixed", "transformer", gpt2, tokens(2, 256), precision="bf16-mixed"),
    Case(
        "gpt2-inference",
        "transformer",
        lambda: gpt2().eval(),
        tokens(4, 256, labels=False),
        None,
        inference=True,
    ),
    Case(
        "gpt2-generate",
        "transformer",
        lambda: gpt2().eval(),
        tokens(1, 64, labels=False),
        None,
        inference=True,
        generate=32,
    ),
    Case("bert-classifier", "transformer", bert, CLASSES, sgd),
    Case("llama-tiny", "transformer", llama_tiny, tokens(4, 256)),
    Case("llama-tiny-masked", "transformer", llama_tiny, MASKED, partial(adamw, fused=True)),
    Case("llama-tiny-eager", "transformer", llama_eager, tokens(4, 256)),
    Case("llama-tiny-bf16", "transformer", llama_tiny, tokens(4, 256), precision="bf16"),
    Case("llama-tiny-accumulate", "transformer", llama_tiny, tokens(2, 256), accumulate=4),
    Case(
        "llama-tiny-generate",
        "transformer",
        lambda: llama_tiny().eval(),
        tokens(2, 32, labels=False),
        None,
        inference=True,
        generate=16,
    ),
    Case("whisper-like", "transformer", whisper, SPEECH),
    Case("t5-like", "transformer", t5, {**tokens(4, 128)}),
    Case("qwen2-0.5b", "transformer", qwen2_half, tokens(1, 256), tags=frozenset({"large"})),
    Case("qwen2-0.5b-lora", "transformer", qwen2_lora, tokens(1, 256), tags=frozenset({"large"})),
]
