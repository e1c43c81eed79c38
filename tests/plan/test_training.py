"""Plans of training, by real estimates of a small model and of bundled ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError, UnknownMachineError
from mpskit.plan import TrainingPlan, plan_training

MIB = 2**20


def planned(config: Any, **asked: Any) -> TrainingPlan:
    return plan_training(config, **{"machine": "m1-16gb", **asked})


def test_what_fits_is_taken_as_it_is(tiny: dict[str, Any]) -> None:
    plan = planned(tiny)
    assert plan.verdict == "fits"
    assert bool(plan)
    assert (plan.device, plan.machine) == ("mps", "m1-16gb")
    assert (plan.method, plan.precision, plan.checkpointing) == ("lora", "fp32", False)
    assert (plan.batch_size, plan.accumulate, plan.seq_len) == (8, 1, 512)
    assert plan.effective_batch == 8
    assert plan.needed_bytes == plan.estimate.driver_bytes
    assert plan.margin_bytes == plan.usable_bytes - plan.needed_bytes
    assert plan.would_fit == ()
    assert plan.attention == "sdpa"


def test_the_guides_figures_are_the_defaults(tiny: dict[str, Any]) -> None:
    plan = planned(tiny)
    assert plan.lora is not None
    assert (plan.lora.rank, plan.lora.alpha, plan.lora.dropout) == (8, 16, 0.05)
    assert plan.lora.targets == ("q_proj", "v_proj")
    assert (plan.learning_rate, plan.epochs) == (2e-4, 3)
    assert planned(tiny, stage="test").epochs == 5
    assert planned(tiny, stage="production").epochs == 10


def test_peft_names_are_taken(tiny: dict[str, Any]) -> None:
    given = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj"]}
    lora = planned(tiny, lora=given).lora
    assert lora is not None
    assert lora.model_dump() == {"rank": 4, "alpha": 32, "dropout": 0.1} | {
        "targets": ("q_proj",),
        "task": "CAUSAL_LM",
    }


def test_memory_is_the_estimators(tiny: dict[str, Any]) -> None:
    """The plan's figures are those that the same settings have when they are estimated alone."""
    from mpskit import estimate_from_config

    plan = planned(tiny, lora={"r": 4, "target_modules": ["q_proj", "up_proj"]}, batch=2)
    alone = estimate_from_config(
        tiny,
        batch_size=2,
        seq_len=512,
        lora={"rank": 4, "targets": ["q_proj", "up_proj"], "dropout": 0.05},
        accumulate=4,
        device="mps",
    )
    assert plan.estimate.peak_bytes == pytest.approx(alone.peak_bytes, rel=1e-3)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("2GiB", {"verdict": "fits", "batch_size": 8}),
        ("320MiB", {"verdict": "fits", "batch_size": 2}),
        ("20MiB", {"verdict": "does-not-fit", "batch_size": 1, "seq_len": 128}),
    ],
)
def test_less_memory_means_less(
    tiny: dict[str, Any], budget: str, expected: Mapping[str, Any]
) -> None:
    plan = planned(tiny, device="cpu", budget=budget)  # MPS takes memory by the gigabyte
    assert {name: getattr(plan, name) for name in expected} == expected
    assert plan.effective_batch == 8
    assert bool(plan) is (plan.verdict != "does-not-fit")


def test_a_given_length_is_not_shortened(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, device="cpu", seq_len=1024, budget="60MiB")
    assert (plan.verdict, plan.seq_len) == ("does-not-fit", 1024)


def test_what_would_fit_is_estimated(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, device="cpu", seq_len=1024, budget="100MiB")
    assert plan.verdict == "does-not-fit"
    shorter, *others = plan.would_fit
    assert "tokens in a row" in shorter.words
    assert all(option.answer != "does-not-fit" for option in plan.would_fit)
    assert shorter.needed_bytes < 100 * MIB
    assert any(option.machine for option in others)


def test_fidelity_gives_up_nothing_while_it_can(tiny: dict[str, Any]) -> None:
    fast = planned(tiny, machine="m4-16gb")
    true = planned(tiny, machine="m4-16gb", prefer="fidelity")
    assert fast.weights_dtype == "bfloat16"
    assert true.weights_dtype == "float32"
    assert true.needed_bytes > fast.needed_bytes


def test_the_ways_are_compared_at_the_same_rows(tiny: dict[str, Any]) -> None:
    """With so many layers over so few rows no buffer is of 10 MiB, so no heap of 1 GiB evens out."""
    plan = planned({**tiny, "num_hidden_layers": 16}, batch=2, seq_len=128)
    assert [one.words for one in plan.compared if one.chosen] == ["fp32"]
    assert {one.batch_size for one in plan.compared} == {plan.batch_size}
    needs = {one.words: one.needed_bytes for one in plan.compared}
    assert needs["bf16 base"] < needs["fp32"]
    assert needs["fp32 + checkpointing"] < needs["fp32"]


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({"precision": "fp32", "base": "bf16"}, {"weights_dtype": "bfloat16"}),
        ({"precision": "bf16-mixed", "base": None}, {"autocast_dtype": "bfloat16"}),
        ({"checkpointing": True}, {"checkpointing": True}),
        ({"batch_size": 2}, {"batch_size": 2, "accumulate": 4}),
        ({"seq_len": 64}, {"seq_len": 64}),
        ({"optimizer": "sgd"}, {"optimizer": "sgd"}),
        ({"lora": 2}, {"method": "lora"}),
    ],
)
def test_what_is_fixed_stays(
    tiny: dict[str, Any], fixed: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    plan = planned(tiny, fixed=fixed)
    assert {name: getattr(plan, name) for name in expected} == expected


def test_optimizers_that_need_cuda_are_replaced(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, optimizer="paged_adamw_8bit")
    assert plan.optimizer == "adamw"
    assert "needs CUDA" in plan.reasons["optimizer"]


def test_a_full_fine_tune_that_does_not_fit_becomes_adapters() -> None:
    """BERT is small enough to be trained whole by default, and too large for 800 MiB."""
    asked: dict[str, Any] = {"device": "cpu", "seq_len": 128}
    name = "google-bert/bert-base-uncased"
    assert planned(name, **asked).method == "full"
    small = planned(name, **asked, budget="800MiB")
    assert (small.method, small.verdict) == ("lora", "fits")
    assert "no way to train every weight fits" in small.reasons["method"]
    assert planned(name, **asked, budget="800MiB", method="full").verdict == "does-not-fit"


def test_the_environment_holds_mps_to_the_cap(tiny: dict[str, Any]) -> None:
    plan = planned(tiny)
    high = float(plan.environment["PYTORCH_MPS_HIGH_WATERMARK_RATIO"])
    low = float(plan.environment["PYTORCH_MPS_LOW_WATERMARK_RATIO"])
    recommended = 11453251584  # of 16 GiB: two thirds
    assert high * recommended == pytest.approx(plan.cap_bytes, rel=1e-3)
    assert low < high
    assert plan.needed_bytes < plan.cap_bytes <= plan.usable_bytes
    assert planned(tiny, machine="T4").environment == {}


def test_times_of_an_epoch_and_of_the_run(tiny: dict[str, Any]) -> None:
    alone = planned(tiny)
    plan = planned(tiny, samples=5000)
    assert (alone.epoch, alone.run, alone.quick_run) == (None, None, 1000)
    assert plan.step is not None
    assert plan.epoch is not None
    assert plan.run is not None
    assert plan.epoch.middle == pytest.approx(plan.step.step.middle * 5000 / 8)
    assert plan.run.middle == pytest.approx(3 * plan.epoch.middle)
    assert planned(tiny, samples=50).quick_run == 50


def test_cards_are_compared_and_a_short_run_stays_here(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, samples=100)
    assert [card.card for card in plan.cloud] == ["T4", "P100", "RTX 3060", "RTX 3090", "A100"]
    assert plan.local
    assert not planned("Qwen/Qwen2.5-7B", seq_len=128).local
    assert planned(tiny, machine="T4").cloud == ()


def test_a_fleet_shares_the_effective_batch(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, machine="A100", world_size=4, effective_batch=64)
    assert plan.effective_batch == 64
    assert plan.batch_size * plan.accumulate == 16
    assert plan.sharding == "ddp"
    assert "the whole model fits in each process" in plan.reasons["sharding"]
    assert "4 processes (DDP) = 64 rows" in str(plan)
    assert planned(tiny).sharding == "none"
    with pytest.raises(ArgumentError, match="does not divide among 3"):
        planned(tiny, world_size=3, effective_batch=64)


def test_a_fleet_shares_a_model_that_no_card_holds(tiny: dict[str, Any]) -> None:
    from mpskit import estimate_from_config

    large = tiny | {"num_hidden_layers": 48, "hidden_size": 1024, "intermediate_size": 2816}
    settled = {"precision": "fp32", "checkpointing": False, "optimizer": "adamw"}
    asked: dict[str, Any] = {"machine": "T4", "seq_len": 128, "batch": 1, "budget": 6 * 2**30}
    plan = planned(large, method="full", world_size=8, fixed=settled, **asked)
    assert (plan.sharding, plan.verdict) == ("fsdp", "fits")
    assert "does not fit in each process" in plan.reasons["sharding"]
    assert any("fully_shard" in note for note in plan.notes)
    alone = estimate_from_config(
        large, batch_size=1, seq_len=128, device="cuda", world_size=8, sharding="fsdp"
    )
    assert alone == plan.estimate
    assert not planned(large, method="full", fixed=settled, **asked)


def test_several_processes_on_a_mac_are_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="no collective operations for MPS"):
        planned(tiny, world_size=2)
    assert planned(tiny, world_size=2, device="cpu").sharding == "ddp"


def test_a_fleet_trains_a_module_with_buckets() -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Linear(1000, 1000)

    batch = torch.zeros(4, 1000)
    asked: dict[str, Any] = {"machine": "A100", "batch": batch, "fixed": {"optimizer": "adamw"}}
    one, two = (planned(make, world_size=count, **asked) for count in (1, 2))
    assert (one.sharding, two.sharding) == ("none", "ddp")
    assert two.estimate.gradients_bytes >= one.estimate.gradients_bytes + 1000 * 1000 * 4


def test_a_fleet_passes_over_the_data_together(tiny: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"machine": "A100", "samples": 64000, "batch": 8}
    one = planned(tiny, **asked)
    four = planned(tiny, world_size=4, effective_batch=32, **asked)
    assert one.epoch is not None
    assert four.epoch is not None
    assert four.epoch.middle == pytest.approx(one.epoch.middle / 4, rel=0.01)
    assert any("one process alone" in note for note in four.notes)


def test_an_intel_mac_and_a_cpu_train_in_float32(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, machine="m1-16gb", device="cpu")
    assert (plan.device, plan.weights_dtype) == ("cpu", "float32")


def test_a_module_with_its_batch() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1000, 1000), torch.nn.Linear(1000, 10))
    before = [parameter.clone() for parameter in model.parameters()]
    batch = (torch.zeros(4, 1000), torch.zeros(4, dtype=torch.int64))
    plan = planned(model, batch=batch)
    assert (plan.model, plan.method, plan.lora) == ("Sequential", "full", None)
    assert (plan.batch_size, plan.seq_len, plan.verdict) == (8, None, "fits")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert planned(model, batch=batch, effective_batch=64, budget="20MiB").batch_size <= 64


def test_json_has_its_keys_at_the_top(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, samples=100)
    read = json.loads(plan.model_dump_json())
    assert read["verdict"] == "fits"
    assert read["batch_size"] == 8
    assert read["estimate"]["peak_bytes"] == plan.estimate.peak_bytes
    assert TrainingPlan.model_validate(read).batch_size == 8


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"machine": "m1-17gb"}, UnknownMachineError, "m1-16gb"),
        ({"budget": 0}, ArgumentError, "budget"),
        ({"budget": "-1GiB"}, ArgumentError, "-1GiB"),
        ({"batch": 3, "effective_batch": 8}, ArgumentError, "does not divide"),
        ({"batch": 0}, ArgumentError, "batch"),
        ({"batch": "8"}, ArgumentTypeError, "batch"),
        ({"seq_len": 0}, ArgumentError, "seq_len"),
        ({"seq_len": True}, ArgumentTypeError, "seq_len"),
        ({"effective_batch": -1}, ArgumentError, "effective_batch"),
        ({"method": "qlora"}, ArgumentError, "method is one of auto, lora, full"),
        ({"prefer": "memory"}, ArgumentError, "prefer is one of speed, fidelity"),
        ({"stage": "later"}, ArgumentError, "stage is one of development"),
        ({"optimizer": "adamwww"}, ArgumentError, "adamw"),
        ({"optimizer": 3}, ArgumentTypeError, "optimizer"),
        ({"fixed": {"optimizer": 3}}, ArgumentTypeError, "optimizer"),
        ({"fixed": {"optimizer": "sgd"}, "optimizer": "adamw"}, ArgumentError, "fixed as 'sgd'"),
        ({"effective_batch": 10**12}, ArgumentError, "more than a step has"),
        ({"fixed": {"colour": 1}}, ArgumentError, "a fixed setting is one of batch_size"),
        ({"fixed": "fp32"}, ArgumentTypeError, "mapping"),
        ({"fixed": {"precision": "fp8"}}, ArgumentError, "fp8"),
        ({"fixed": {"base": "int3"}}, ArgumentError, "base is one of bf16"),
        ({"fixed": {"seq_len": 64}, "seq_len": 128}, ArgumentError, "fixed as 64"),
        ({"lora": 8, "method": "full"}, ArgumentError, "leave lora= away"),
        ({"lora": 0}, ArgumentError, "rank"),
        ({"lora": 8.0}, ArgumentTypeError, "a rank or a mapping"),
        ({"lora": "r8"}, ArgumentTypeError, "a rank or a mapping"),
        ({"lora": {"r": 8, "bias": "all"}}, ArgumentError, "a setting of lora is one of r, "),
        ({"lora": {"r": 8, "lora_alpha": "x"}}, ArgumentTypeError, "lora's lora_alpha"),
        ({"lora": {"r": 8, "lora_dropout": 2.0}}, ArgumentError, "dropout"),
        ({"lora": {"r": 8, "target_modules": 5}}, ArgumentTypeError, "lora's target_modules"),
        ({"lora": {"r": 8, "target_modules": [["q_proj"]]}}, ArgumentTypeError, "names"),
        ({"fixed": {"checkpointing": "yes"}}, ArgumentTypeError, "checkpointing"),
        ({"lora": {"r": 8, "target_modules": ["c_attn"]}}, ArgumentError, "c_attn"),
        ({"samples": 0}, ArgumentError, "samples"),
        ({"world_size": 0}, ArgumentError, "world_size"),
        ({"device": "tpu"}, ArgumentError, "tpu"),
    ],
)
def test_bad_input(
    tiny: dict[str, Any], asked: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        planned(tiny, **asked)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ("Qwen/Qwen2.5-0.6B", ArgumentError, "near: Qwen/Qwen2.5-0.5B"),
        ({"model_type": "qwen2"}, ArgumentError, "hidden_size"),
        ({"model_type": "resnet"}, ArgumentError, "resnet"),
        ("no/such/config.json", ArgumentError, "config.json"),
        (torch.nn.Linear(2, 2), ArgumentError, "needs batch="),
    ],
)
def test_a_model_that_cannot_be_planned(config: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        planned(config)


@pytest.mark.parametrize("config", [None, [], 3])
def test_what_is_no_model(config: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="a model must be"):
        planned(config)


def test_the_text_of_a_config_is_no_path() -> None:
    with pytest.raises(ArgumentError, match="no bundled model"):
        planned(json.dumps({"model_type": "qwen2", "notes": "x" * 5000}))


@pytest.mark.parametrize(
    ("family", "positions", "length"), [("bert", 16, 16), ("bert", 300, 256), ("roberta", 16, 14)]
)
def test_a_row_has_no_more_tokens_than_the_model_has_positions(
    family: str, positions: int, length: int
) -> None:
    config = {
        "model_type": family,
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
    }
    assert plan_training(config, machine="m3-max-64gb", effective_batch=1).seq_len == length


def test_a_batch_may_be_made_by_a_callable() -> None:
    def make(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(rows, 2), torch.zeros(rows, 2)

    plan = planned(lambda: torch.nn.Linear(2, 2), batch=make)
    assert (plan.verdict, plan.batch_size) == ("fits", 8)
    assert plan.model == "<lambda>"


def test_a_length_for_a_module() -> None:
    with pytest.raises(ArgumentError, match="for a transformer's config"):
        planned(torch.nn.Linear(2, 2), batch=torch.zeros(1, 2), seq_len=8)


def test_heaps_that_do_not_fit_are_not_too_much(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, seq_len=64, effective_batch=1)
    usable = plan.needed_bytes - MIB
    tight = plan.model_copy(update={"verdict": "tight", "usable_bytes": usable})
    assert "1 row a step" in str(tight)
    assert "tight: the tensors fit" in str(tight)
    assert "1.00 MiB more" in str(tight)
    assert "too much" not in str(tight)


def test_a_config_that_does_not_tell_its_parameters(tiny: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"seq_len": 64, "effective_batch": 1}
    assert "does not say" in planned(tiny, **asked).reasons["method"]
    assert planned({**tiny, "parameters": 5_000_000}, **asked).method == "full"
    large = planned({**tiny, "parameters": 500_000_000}, **asked)
    assert "300 million parameters on" in large.reasons["method"]


def test_what_is_fixed_is_not_called_a_choice(tiny: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"seq_len": 64, "effective_batch": 1}
    whole = planned(tiny, **asked, method="full", fixed={"precision": "bf16"})
    assert whole.reasons["precision"].startswith("bf16 is fixed")
    mixed = planned(tiny, **asked, fixed={"precision": "fp16-mixed"})
    assert mixed.reasons["precision"].startswith("fp16-mixed is fixed")
    assert "quantization" not in planned(tiny, **asked, fixed={"base": "nf4"}).reasons


def test_beside_a_tight_plan_only_what_fits_is_offered(tiny: dict[str, Any]) -> None:
    asked: dict[str, Any] = {
        "device": "cpu",
        "seq_len": 130,  # 128 tokens need next to nothing less
        "effective_batch": 1,
        "fixed": {"precision": "fp32", "base": None, "checkpointing": True},
    }
    need = planned(tiny, **asked).needed_bytes
    plan = planned(tiny, **asked, budget=int(need * 1.04))
    assert plan.verdict == "tight"
    assert {option.answer for option in plan.would_fit} == {"fits"}


def test_a_module_whose_forward_fails() -> None:
    with pytest.raises(EstimateError, match="step failed"):
        planned(torch.nn.Linear(3, 2), batch=(torch.zeros(1, 4), torch.zeros(1, 2)))


def test_adapters_for_a_module() -> None:
    with pytest.raises(ArgumentError, match="for a transformer's config"):
        planned(torch.nn.Linear(2, 2), batch=(torch.zeros(1, 2), torch.zeros(1, 2)), lora=4)


@pytest.mark.parametrize("lora", [8, None])
def test_accumulated_batches_are_counted_from_one(tiny: dict[str, Any], lora: int | None) -> None:
    """As a trace of every batch counts them."""
    from mpskit import workload_from_config
    from mpskit.plan.jobs import config_job
    from mpskit.plan.settings import Setting

    setting = Setting(rows=1, accumulate=3, seq_len=64, rank=lora)
    counted = config_job(tiny, "mps").count(setting)
    whole = workload_from_config(
        tiny, batch_size=1, seq_len=64, lora=lora, accumulate=3, device="mps"
    )
    for name in ("flops", "bytes_moved", "launches"):
        assert getattr(counted, name) == pytest.approx(getattr(whole, name))
