"""transformers Trainer on a LoRA by peft."""

import peft
from _common import qwen2, train

train(peft.get_peft_model(qwen2(), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"])))
