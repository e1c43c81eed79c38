"""A plan's adapters as peft's LoraConfig."""

import sys

import pytest
import torch

import mpskit
from mpskit import plan_training

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.needs_torch("estimate"),
    pytest.mark.usefixtures("traced_once"),
    # peft 0.21 asks transformers 5 by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def planned(**asked):
    return plan_training(CONFIG, machine="m3-max-64gb", seq_len=8, **asked)


def test_the_adapters_are_the_plans():
    found = planned(lora={"r": 4, "lora_alpha": 12, "lora_dropout": 0.25}).to_peft()
    assert isinstance(found, peft.LoraConfig)
    assert (found.r, found.lora_alpha, found.lora_dropout) == (4, 12, 0.25)
    assert found.target_modules == {"q_proj", "v_proj"}
    assert found.task_type == "CAUSAL_LM"
    own = planned(method="lora").to_peft(task_type="SEQ_CLS", bias="lora_only")
    assert (own.r, own.task_type, own.bias) == (8, "SEQ_CLS", "lora_only")


BERT = CONFIG | {"model_type": "bert", "max_position_embeddings": 16, "type_vocab_size": 2}


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("BertForSequenceClassification", "SEQ_CLS"),
        ("BertModel", "FEATURE_EXTRACTION"),
        ("BertForMaskedLM", None),
    ],
)
def test_the_task_is_what_stands_on_top_of_the_layers(head, task):
    config = BERT | {"architectures": [head]}
    plan = plan_training(config, machine="m3-max-64gb", seq_len=8, method="lora")
    assert plan.lora.task == task
    assert plan.to_peft().task_type == task


def test_adapters_over_a_half_precision_base_are_float32():
    plan = planned(method="lora", fixed={"base": "bf16"})
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    config = transformers.Qwen2Config(**settings)
    base = transformers.AutoModelForCausalLM.from_config(config, **plan.to_model_kwargs())
    model = peft.get_peft_model(base, plan.to_peft())
    trained = {one.dtype for one in model.parameters() if one.requires_grad}
    frozen = {one.dtype for one in model.parameters() if not one.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})


def test_a_plan_without_adapters_says_so():
    with pytest.raises(mpskit.ArgumentError, match="plan with method='lora'") as caught:
        planned(method="full").to_peft()
    assert caught.value.given.method == "full"


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(mpskit.MissingExtraError, match="pip install peft"):
        planned(method="lora").to_peft()
