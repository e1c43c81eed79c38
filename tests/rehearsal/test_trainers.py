"""Unmodified trainers end after the steps asked for, and write nothing."""

import pytest
import torch
from torch import nn

import mpskit

pytestmark = [
    pytest.mark.needs_torch("simulation"),
    pytest.mark.filterwarnings("ignore"),  # the trainers' own
]


class Rows(torch.utils.data.Dataset):
    """Rows of token numbers, their own labels."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        row = torch.arange(16) + index
        return {"input_ids": row, "labels": row}


@pytest.mark.parametrize("lora", [False, True])
def test_transformers_with_checkpoints_and_evaluation(tmp_path, lora):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    with mpskit.rehearse("m1-8gb", steps=2) as run:
        model = transformers.LlamaForCausalLM(config)
        if lora:
            peft = pytest.importorskip("peft")
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=50, save_strategy="steps", save_steps=1,
            save_total_limit=1, eval_strategy="steps", eval_steps=1, logging_steps=1,
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows()).train()
    assert (run.report.steps, run.report.ended) == (2, "steps")
    assert run.report.runs
    assert run.report.of("slow") == ()
    assert list(tmp_path.iterdir()) == []


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        """A linear layer."""

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(16, 16)

        def training_step(self, batch):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    with mpskit.rehearse("m1-8gb", steps=2) as run:
        data = torch.utils.data.TensorDataset(torch.ones(64, 16))
        lightning.Trainer(
            accelerator="mps", max_steps=50, logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=str(tmp_path),
        ).fit(Net(), torch.utils.data.DataLoader(data, batch_size=4))  # fmt: skip
    assert (run.report.steps, run.report.ended) == (2, "steps")
    assert run.report.runs
    assert list(tmp_path.iterdir()) == []


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    with mpskit.rehearse("m1-8gb", steps=2) as run:
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
        model = nn.Linear(16, 16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        passes = 0
        for _ in range(50):
            passes += 1
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.ones(4, 16, device=accelerator.device)).mean())
                optimizer.step()
                optimizer.zero_grad()
    assert (run.report.steps, passes) == (2, 4)
    assert run.report.of("stops") == ()
