"""``generate()`` of transformers on a simulated Mac, beside the estimate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpskit
from mpskit import estimate_from_config

transformers = pytest.importorskip("transformers", minversion="5.0")

pytestmark = pytest.mark.filterwarnings("default")

QWEN = {
    "model_type": "qwen2", "vocab_size": 8000, "hidden_size": 256, "intermediate_size": 1024,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
# In bfloat16 the small one is mostly what torch 2.13's cache rounds up.
WIDE = QWEN | {
    "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 8000, "n_embd": 256, "n_layer": 6, "n_head": 4}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def generated(config: dict[str, Any], shape: tuple[int, int], until: int, dtype: torch.dtype):
    """Return live and driver memory at the peak of decoding until the cache holds ``until``."""
    with mpskit.simulate("m3-max-64gb") as mac:
        settings = transformers.AutoConfig.for_model(**config)
        settings.eos_token_id = settings.pad_token_id = settings.bos_token_id = None
        made = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype)
        model = made.to("mps").eval()
        ids = torch.zeros(shape, dtype=torch.int64, device="mps")
        mask, count = torch.ones_like(ids), until + 1 - shape[1]  # the last one is not fed back
        found = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False
        )
        assert found.shape == (shape[0], until + 1)
        return mac.peak_allocated_bytes, mac.peak_driver_bytes


@pytest.mark.parametrize(
    ("config", "shape", "until", "precision"),
    [(QWEN, (2, 64), 76, "fp32"), (QWEN, (1, 512), 520, "fp32"), (WIDE, (8, 64), 74, "bf16"),
     (GPT2, (4, 64), 72, "fp32")],
)  # fmt: skip
def test_decoding_takes_what_was_estimated(
    config: dict[str, Any], shape: tuple[int, int], until: int, precision: str
) -> None:
    live, driver = generated(config, shape, until, DTYPES[precision])
    need = estimate_from_config(
        config, batch_size=shape[0], seq_len=shape[1], training=False, cache_len=until,
        precision=precision, device="mps", torch_version=torch.__version__,
    )  # fmt: skip
    assert need.peak_bytes == pytest.approx(live, rel=0.015)  # some of it is the cache's rounding
    assert need.driver_bytes == pytest.approx(driver, rel=0.05)
