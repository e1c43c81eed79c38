"""Small models and data that the rehearsed scripts share; nothing is downloaded."""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

TINY = {
    "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


class Tokens(torch.utils.data.Dataset):
    """Rows of token numbers, their own labels."""

    def __init__(self, rows: int = 64, length: int = 64) -> None:
        self.rows = torch.randint(1000, (rows, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def llama() -> LlamaForCausalLM:
    """Return a Llama of 0.7M parameters."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY))


def qwen2() -> Qwen2ForCausalLM:
    """Return a Qwen2 of 0.7M parameters."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**TINY))


def train(model: torch.nn.Module, **options: object) -> None:
    """Train for three optimizer steps with transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        given = {
            "output_dir": folder, "max_steps": 3, "per_device_train_batch_size": 4,
            "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
        } | options  # fmt: skip
        data = Tokens()
        Trainer(model, TrainingArguments(**given), train_dataset=data, eval_dataset=data).train()
