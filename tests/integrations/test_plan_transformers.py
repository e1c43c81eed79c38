"""A plan as transformers' arguments, and its callback around an unmodified Trainer."""

import dataclasses
import math
import sys
import types

import pytest
import torch

import mpskit
from mpskit import plan_training

peft = pytest.importorskip("peft")  # first: its import puts another object of transformers in place
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.needs_torch("simulation"),
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
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
# A training on one Mac with MPS and on one without is in every run; the others take the same two
# ways, and the virtual one tries MPS in a process of its own.
MACS = (
    "m1-8gb",
    *(
        pytest.param(name, marks=pytest.mark.full)
        for name in ("m1-pro-16gb", "m3-max-64gb", "github-macos-15-vm")
    ),
    "intel-mac-16gb",
)


def planned(machine=None, **asked):
    chosen = {"method": "lora", "seq_len": 8} | asked
    return plan_training(CONFIG, machine=machine, **chosen)


@pytest.fixture(scope="module")
def plan():
    return planned("m1-8gb")


def model_for(plan):
    torch.manual_seed(0)
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    config = transformers.Qwen2Config(**settings, use_cache=False)
    model = transformers.AutoModelForCausalLM.from_config(config, **plan.to_model_kwargs())
    return peft.get_peft_model(model, plan.to_peft())


def trainer_for(plan, folder, callbacks, **own):
    length = plan.seq_len
    ids = torch.arange(32 * length).view(32, length) % 64
    settings = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1} | own
    arguments = plan.to_training_arguments(
        output_dir=str(folder), report_to=[], disable_tqdm=True, **settings
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return transformers.Trainer(model_for(plan), arguments, train_dataset=rows, callbacks=callbacks)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("m1-8gb", {"use_cpu": False, "dataloader_pin_memory": False, "dataloader_num_workers": 0}),
        ("intel-mac-16gb", {"use_cpu": True, "dataloader_pin_memory": False}),
        ("T4", {"use_cpu": False, "dataloader_pin_memory": True}),
    ],
)
def test_each_machine_has_its_own(machine, expected):
    found = planned(machine).apply_to()
    assert found.items() >= expected.items()
    same = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "optim": "adamw_torch",
        "bf16": False,
        "fp16": False,
        "remove_unused_columns": True,
        "activation_checkpointing": False,
        "learning_rate": 2e-4,
        "num_train_epochs": 3,
    }
    assert found.items() >= same.items()


def test_what_the_caller_decides_stays(plan):
    own = {"output_dir": "x", "learning_rate": 1.0, "per_device_train_batch_size": 3, "fp16": True}
    given = dict(own)
    found = plan.apply_to(given)
    assert given == own
    assert found.items() >= own.items()
    # The other half of a decision that the caller has made is not the plan's to add.
    assert not {"gradient_accumulation_steps", "bf16"} & found.keys()


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_is_decided_once_under_either_name(plan, name):
    found = plan.model_copy(update={"checkpointing": True}).apply_to({name: False})
    assert [key for key in found if key.endswith("checkpointing")] == [name]


@pytest.mark.parametrize(
    ("machine", "optim", "pinned"),
    [
        ("m1-8gb", "adamw_torch", False),
        ("intel-mac-16gb", "adamw_torch", False),
        ("T4", "paged_adamw_8bit", True),
    ],
)
def test_what_needs_cuda_is_replaced_elsewhere(machine, optim, pinned):
    guide = {
        "optim": transformers.training_args.OptimizerNames("paged_adamw_8bit"),
        "dataloader_pin_memory": True,
        "no_cuda": False,
        "use_mps_device": True,
    }
    found = planned(machine).apply_to(guide)
    assert (found["optim"], found["dataloader_pin_memory"]) == (optim, pinned)
    assert not {"no_cuda", "use_mps_device"} & found.keys()


@pytest.mark.parametrize("machine", ["m1-8gb", "m3-max-64gb", "intel-mac-16gb"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpointing": True, "verdict": "tight"},
        {"precision": "bf16-mixed", "autocast_dtype": "bfloat16"},
        {"loader": {"num_workers": 2, "prefetch_factor": 4, "persistent_workers": True}},
    ],
    ids=["plain", "tight", "mixed", "workers"],
)
def test_transformers_takes_every_argument_without_a_warning(machine, changes, tmp_path):
    with mpskit.simulate(machine):
        plan = planned().model_copy(update=changes)
        arguments = plan.to_training_arguments(output_dir=str(tmp_path), report_to=[])
        assert arguments.device.type == plan.device
        assert arguments.bf16 is ("precision" in changes)
        assert arguments.activation_checkpointing is ("checkpointing" in changes)
        assert arguments.torch_empty_cache_steps == (
            100 if "verdict" in changes and plan.device == "mps" else None
        )


def test_transformers_4_gets_its_own_names(plan, monkeypatch):
    """Its TrainingArguments had the old name of checkpointing and nothing to clear the cache."""
    fields = ["output_dir", "use_cpu", "gradient_checkpointing", "gradient_checkpointing_kwargs"]
    old = dataclasses.make_dataclass("TrainingArguments", fields)
    monkeypatch.setattr(transformers, "TrainingArguments", old)
    tight = plan.model_copy(update={"checkpointing": True, "verdict": "tight"})
    assert tight.to_training_arguments(output_dir="x") == old(
        "x", False, True, {"use_reentrant": False}
    )


@pytest.mark.parametrize(("version", "name"), [("4.55.4", "torch_dtype"), ("5.23.0", "dtype")])
def test_a_model_is_loaded_in_the_planned_dtype(plan, version, name, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", version)
    half = plan.model_copy(update={"weights_dtype": "bfloat16"})
    assert half.to_model_kwargs(revision="main") == {
        "attn_implementation": "sdpa",
        name: torch.bfloat16,
        "revision": "main",
    }


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_are_loaded_onto_the_device(plan, kind, monkeypatch):
    quantized = plan.model_copy(update={"quantization": kind, "weights_dtype": kind})
    with pytest.raises(mpskit.MissingExtraError, match="pip install bitsandbytes"):
        quantized.to_model_kwargs()
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    found = quantized.to_model_kwargs()
    assert found["device_map"] == {"": "mps"}
    config = found["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (kind == "nf4", kind == "int8")
    if kind == "nf4":
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.float32)


def test_without_transformers_the_error_says_what_to_install(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for use in (plan.apply_to, plan.to_training_arguments, plan.to_model_kwargs):
        with pytest.raises(mpskit.MissingExtraError, match="pip install transformers"):
            use()


def test_a_package_that_lacks_something_of_its_own_says_so(plan, monkeypatch, tmp_path):
    (tmp_path / "peft.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "peft")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        plan.to_peft()


@pytest.mark.parametrize("machine", MACS)
def test_one_plan_trains_on_every_mac(machine, tmp_path, watched):
    with mpskit.simulate(machine):
        plan = planned()
        callback = plan.to_trainer_callback(interval=0.05)
        trainer = trainer_for(plan, tmp_path, [callback])
        trainer.train()
        assert {one.device.type for one in trainer.model.parameters()} == {plan.device}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert watched == ["training qwen2", "over"]
    assert callback.monitor.timeline
    assert (callback.monitor.peak_bytes is None) == (plan.device == "cpu")


def test_running_out_of_memory_becomes_the_next_plan_which_trains(tmp_path, watched):
    asked = {"seq_len": 128, "effective_batch": 32}
    with mpskit.simulate("m1-8gb"):
        plan = planned(**asked)
        assert plan.batch_size == 32
        with mpskit.limit_memory("24MiB", "mps"):
            with (
                pytest.raises(mpskit.OutOfMemory, match="Next plan: a batch of 16 x 2") as caught,
                plan.to_trainer_callback() as callback,
            ):
                trainer_for(plan, tmp_path, [callback]).train()
            assert mpskit.is_oom(caught.value.__cause__)
            assert watched == ["training qwen2", "over"]
            # Nothing of the failed step is left to stand in the next one's way.
            assert torch.mps.current_allocated_memory() == 0
            smaller = caught.value.next_plan
            while True:
                try:
                    with smaller.to_trainer_callback() as callback:
                        trainer = trainer_for(smaller, tmp_path, [callback])
                        trainer.train()
                    break
                except mpskit.OutOfMemory as error:
                    smaller = error.next_plan
    assert trainer.state.global_step == 2
    assert trainer.args.gradient_accumulation_steps * trainer.args.train_batch_size == 32


def test_a_watched_run_resumes(tmp_path, plan):
    with mpskit.simulate("m1-8gb"):
        saving = {"save_strategy": "steps", "save_steps": 1}
        trainer_for(plan, tmp_path, [plan.to_trainer_callback()], **saving).train()
        resumed = trainer_for(
            plan, tmp_path, [plan.to_trainer_callback()], **saving | {"max_steps": 3}
        )
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert len([entry for entry in resumed.state.log_history if "loss" in entry]) == 3
