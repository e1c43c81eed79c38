"""transformers' Trainer, unmodified, on a tiny GPT-2 made from a config."""

import pytest
import torch

import mpskit

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")


def rows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32, (16, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(folder, device, **options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    chosen = {"max_steps": 3, "save_strategy": "no"} | options
    arguments = transformers.TrainingArguments(
        str(folder),
        use_cpu=device == "cpu",
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        **chosen,
    )
    model = transformers.GPT2LMHeadModel(config)
    return transformers.Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows()[:4])


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def trained(folder, **options):
    def run(device):
        one = trainer(folder, device, **options)
        one.train()
        return one.model, losses(one)

    return run


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}],
    ids=["plain", "checkpointing", "accumulation"],
)
def test_float32_is_bit_equal_to_the_cpu(both, tmp_path, options):
    inside, outside = both(trained(tmp_path, **options))
    assert inside == outside


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(on_mac, tmp_path, precision):
    mixed = on_mac(trained(tmp_path, **{precision: True}))
    full = on_mac(trained(tmp_path))
    assert mixed != full
    assert mixed == pytest.approx(full, abs=0.02)


def test_evaluation_is_bit_equal_too(tmp_path):
    def evaluated(device):
        return trainer(tmp_path, device).evaluate()["eval_loss"]

    with mpskit.simulate("m1-8gb"):
        inside = evaluated("mps")
    assert inside == evaluated("cpu")


def test_a_checkpoint_resumes_and_moves_to_the_cpu(tmp_path):
    whole = trained(tmp_path / "whole", max_steps=4)("cpu")[1]
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    with mpskit.simulate("m1-8gb"):
        trainer(tmp_path / "run", "mps", **saving).train()
        resumed = trainer(tmp_path / "run", "mps", **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        assert losses(resumed) == whole
        assert next(resumed.model.parameters()).is_mps
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert next(model.parameters()).device.type == "cpu"


def test_a_model_is_loaded_onto_the_device(tmp_path):
    trainer(tmp_path, "cpu").model.save_pretrained(tmp_path)
    with mpskit.simulate("m1-8gb"):
        model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, device_map="mps")
        assert {str(parameter.device) for parameter in model.parameters()} == {"mps:0"}
        ids = model.generate(torch.ones(1, 2, dtype=torch.long, device="mps"), max_new_tokens=3)
        assert ids.is_mps
