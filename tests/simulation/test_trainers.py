"""Unmodified trainers of other libraries on a simulated Mac, against the same run on the CPU."""

import logging
import warnings

import pytest
import torch
from torch.utils.data import Dataset

from mpskit.simulation import simulate

MPS = torch.device("mps", 0)
VOCABULARY, LENGTH = 64, 16

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # other people's, of which there are many
    pytest.mark.timeout(120),
]


class Text(Dataset):
    """Sixteen sequences of counting numbers: something to learn."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        tokens = (torch.arange(LENGTH) + index) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


def tiny_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLMLoss",
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def devices(model):
    return {p.device for p in model.parameters()}


def transformers_run(folder, *, resume=None, model=None, **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 1,
            "dataloader_pin_memory": False,
        }
        | options,
    )
    trainer = Trainer(
        model=model or tiny_model(), args=arguments, train_dataset=Text(), eval_dataset=Text()
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"optim": "adafactor"},
    ],
    ids=["plain", "checkpointing", "accumulation", "adafactor"],
)
def test_transformers_trainer_is_bit_equal_in_float32(tmp_path, options):
    plain, _ = transformers_run(tmp_path / "cpu", use_cpu=True, **options)
    with simulate("m1-8gb"):
        losses, trainer = transformers_run(tmp_path / "mps", **options)
        assert devices(trainer.model) == {MPS}
        evaluation = trainer.evaluate()["eval_loss"]
    assert losses == plain
    assert losses[-1] < losses[0]
    assert evaluation < losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_transformers_trainer_in_mixed_precision(tmp_path, precision):
    with simulate("m3-max-64gb"):
        losses, trainer = transformers_run(tmp_path, **{precision: True})
        assert devices(trainer.model) == {MPS}
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        again, _ = transformers_run(tmp_path, **{precision: True})
    assert losses == again
    assert losses[-1] < losses[0]


def test_transformers_trainer_saves_and_resumes(tmp_path):
    with simulate("m1-8gb"):
        whole, _ = transformers_run(tmp_path / "a", save_strategy="steps", save_steps=2)
        rest, trainer = transformers_run(
            tmp_path / "a", resume=str(tmp_path / "a" / "checkpoint-2")
        )
        assert rest[-2:] == whole[-2:]
        assert devices(trainer.model) == {MPS}


def test_from_pretrained_onto_mps(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny_model().save_pretrained(tmp_path)
    with simulate("m1-8gb"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="mps")
        assert devices(model) == {MPS}
        tokens = torch.arange(4, device="mps")[None]
        made = model.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert made.is_mps
        assert made.shape == (1, 7)


def accelerate_run():
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    data = DataLoader(torch.randn(16, 4), batch_size=4, shuffle=True)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    losses = []
    for batch in data:
        assert batch.device.type == accelerator.device.type
        loss = model(batch).square().mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss).item())
    return losses, devices(model)


def test_accelerate_loop_before_inside_and_after():
    before, where = accelerate_run()
    assert {device.type for device in where} == {"cpu"}
    with simulate("m1-8gb"):
        inside, where = accelerate_run()
        assert where == {MPS}
    after, where = accelerate_run()
    assert {device.type for device in where} == {"cpu"}
    assert before == inside == after


def lightning_run(folder, **options):
    import lightning
    from torch.utils.data import DataLoader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.losses = []

        def training_step(self, batch, _):
            assert batch.device == self.device
            loss = self.layer(batch).float().square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    lightning.seed_everything(0, verbose=False)
    model = Model()
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    where = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, DataLoader(torch.randn(16, 4), batch_size=4))
        where.add(str(trainer.strategy.root_device))
    return model.losses, where


def test_lightning_trainer_before_inside_and_after(tmp_path):
    before, where = lightning_run(tmp_path, accelerator="auto", devices=1)
    assert where == {"cpu"}
    with simulate("m1-8gb"):
        inside, where = lightning_run(tmp_path, accelerator="mps", devices=1)
        assert where == {"mps:0"}
        chosen, where = lightning_run(tmp_path, accelerator="auto", devices=1)
        assert where == {"mps:0"}
    after, where = lightning_run(tmp_path, accelerator="auto", devices=1)
    assert where == {"cpu"}
    assert before == inside == chosen == after


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lightning_in_mixed_precision(tmp_path, precision):
    with simulate("m3-max-64gb"):
        losses, where = lightning_run(tmp_path, accelerator="mps", devices=1, precision=precision)
    assert where == {"mps:0"}
    assert all(torch.isfinite(torch.tensor(losses)))


def test_peft_lora_in_the_trainer(tmp_path):
    from peft import LoraConfig, get_peft_model

    def model():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["c_attn"]))

    plain, _ = transformers_run(tmp_path / "cpu", use_cpu=True, model=model())
    with simulate("m1-8gb"):
        losses, trainer = transformers_run(tmp_path / "mps", model=model())
        assert devices(trainer.model) == {MPS}
        trainer.model.save_pretrained(tmp_path / "adapter")
    assert losses == plain
