"""What a job asks the estimators for, setting by setting; nothing is traced here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.plan import made_up

from mpskit import TensorSpec
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.models import bundled_models
from mpskit.plan import jobs
from mpskit.plan.jobs import config_job, generation_job, is_config, module_job, smaller_models
from mpskit.plan.settings import Setting
from mpskit.speed.workload import Workload

QWEN = "Qwen/Qwen2.5-0.5B"


class Asked:
    """Stands in for the estimators: keeps what it was asked for."""

    def __init__(self, result: Any = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.result = result

    def __call__(self, *given: Any, **asked: Any) -> Any:
        self.calls.append({"given": given, **asked})
        return self.result(asked) if callable(self.result) else self.result


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked(made_up.need(1))
    monkeypatch.setattr(jobs, "estimate_from_config", asked)
    return asked


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A step of 100, of which each further batch adds 10."""

    def result(asked: dict[str, Any]) -> Workload:
        batches = asked.get("accumulate", 1)
        return Workload(flops=90 + 10 * batches, launches=9 + batches)

    asked = Asked(result)
    monkeypatch.setattr(jobs, "workload_from_config", asked)
    return asked


def test_training_is_estimated_with_every_field_of_its_setting(estimated: Asked) -> None:
    setting = Setting(
        rows=2,
        accumulate=2,
        seq_len=64,
        precision="bf16-mixed",
        base="bf16",
        checkpointing=True,
        rank=4,
        targets=("q_proj",),
        dropout=0.1,
        optimizer="sgd",
        world_size=2,
        sharding="ddp",
    )
    config_job(QWEN, "cuda").estimates(setting)
    assert estimated.calls == [
        {
            "given": (QWEN,),
            "batch_size": 2,
            "seq_len": 64,
            "lora": {"rank": 4, "targets": ["q_proj"], "dropout": 0.1},
            "precision": "bf16-mixed",
            "optimizer": "sgd",
            "accumulate": 2,
            "checkpointing": True,
            "base": "bf16",
            "device": "cuda",
            "world_size": 2,
            "sharding": "ddp",
        }
    ]


def test_without_adapters_and_with_the_usual_ones(estimated: Asked) -> None:
    job = config_job(QWEN, "mps")
    job.estimates(Setting(seq_len=8))
    job.estimates(Setting(seq_len=8, rank=2))
    assert [call["lora"] for call in estimated.calls] == [
        None,
        {"rank": 2, "targets": None, "dropout": 0.0},
    ]


@pytest.mark.parametrize(
    ("config", "context", "expected"),
    [
        # A decoder answers a prompt of half its context, into a cache of all of it.
        (QWEN, 512, {"seq_len": 256, "cache_len": 512}),
        (QWEN, 1, {"seq_len": 1, "cache_len": 1}),
        ("google-bert/bert-base-uncased", 512, {"seq_len": 512, "cache_len": None}),
    ],
)
def test_generation_is_a_prompt_and_its_answer(
    estimated: Asked, config: str, context: int, expected: dict[str, Any]
) -> None:
    job = generation_job(config, "mps")
    job.estimates(Setting(rows=3, seq_len=context, precision="fp16", base="nf4"))
    (call,) = estimated.calls
    assert {name: call[name] for name in expected} == expected
    assert (call["given"], call["batch_size"], call["training"]) == ((config,), 3, False)
    assert (call["precision"], call["base"], call["device"]) == ("fp16", "nf4", "mps")


def test_a_token_is_counted_behind_the_longest_cache(counted: Asked) -> None:
    generation_job(QWEN, "mps").count(Setting(rows=3, seq_len=512, precision="fp16"))
    generation_job("google-bert/bert-base-uncased", "mps").count(Setting(seq_len=512))
    decoder, encoder = counted.calls
    assert (decoder["seq_len"], decoder["cached_tokens"], decoder["batch_size"]) == (1, 511, 3)
    assert (decoder["training"], decoder["precision"]) == (False, "fp16")
    assert (encoder["seq_len"], encoder["cached_tokens"]) == (512, 0)


@pytest.mark.parametrize(("accumulate", "flops", "traced"), [(1, 100, [1]), (5, 140, [1, 2])])
def test_further_batches_add_what_the_second_does(
    counted: Asked, accumulate: int, flops: int, traced: list[int]
) -> None:
    job = config_job(QWEN, "mps")
    found = job.count(Setting(seq_len=8, accumulate=accumulate))
    assert (found.flops, found.launches, found.bytes_moved) == (flops, flops // 10, None)
    assert [call["accumulate"] for call in counted.calls] == traced
    assert job.count(Setting(seq_len=8, accumulate=accumulate)) is found


def test_a_modules_batches_are_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(Workload(flops=100.0, launches=10))
    monkeypatch.setattr(Workload, "of", asked)
    job = module_job(torch.nn.Linear, TensorSpec((4, 8)), "mps")
    assert job.count(Setting(rows=2, accumulate=3, optimizer="sgd")).flops == 300
    module_job(torch.nn.Linear, TensorSpec((4, 8)), "mps", training=False).count(Setting(rows=2))
    trained, run = asked.calls
    assert (trained["optimizer"], trained["training"]) == (torch.optim.SGD, True)
    assert (run["optimizer"], run["training"]) == (None, False)
    assert trained["given"][1].shape == (2, 8)


def test_a_config_tells_its_facts() -> None:
    job = config_job("Qwen2.5-0.5B", "mps", seq_len=64)
    assert (job.name, job.lengths, job.targets) == (QWEN, (64,), ("q_proj", "v_proj"))
    assert (job.adapts, job.checkpoints, job.parameters) == (True, True, 494_032_768)
    assert job.shape is not None
    assert job.on("cpu") is job.on("cpu")
    assert job.like is not None
    assert job.like("gpt2").lengths == (64,)
    several = config_job(QWEN, "mps").lengths
    assert len(several) > 1
    assert list(several) == sorted(several, reverse=True)


def test_a_running_model_has_no_adapters() -> None:
    job = generation_job(QWEN, "mps", context=64)
    assert (job.lengths, job.targets, job.adapts, job.checkpoints) == ((64,), (), False, False)
    assert job.on("cpu").lengths == (64,)
    assert job.like is not None
    assert job.like("gpt2").adapts is False


def test_a_config_by_hand_is_named_by_its_type(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", **dict.fromkeys(("hidden_size", "vocab_size"), 64)}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    job = config_job(config, "mps", seq_len=8)
    assert (job.name, job.parameters) == ("qwen2", None)
    assert config_job(config | {"parameters": 7}, "mps", seq_len=8).parameters == 7
    assert config_job(config | {"parameters": "7"}, "mps", seq_len=8).parameters is None


@pytest.mark.parametrize(
    ("model", "found"),
    [("gpt2", True), (Path("x"), True), ({}, True), (torch.nn.Linear, False), (3, False)],
)
def test_what_a_config_is(model: object, found: bool) -> None:
    assert is_config(model) is found


@pytest.mark.parametrize("make", [config_job, generation_job])
@pytest.mark.parametrize(
    ("length", "error"), [(0, ArgumentError), (-1, ArgumentError), ("8", ArgumentTypeError)]
)
def test_lengths_are_counts(make: Any, length: Any, error: type[Exception]) -> None:
    name = "seq_len" if make is config_job else "context"
    with pytest.raises(error, match=name):
        make(QWEN, "mps", **{name: length})


@pytest.mark.parametrize("name", list(bundled_models()))
def test_smaller_models_are_of_the_family_its_owners_first(name: str) -> None:
    models = bundled_models()
    size, family, owner = models[name]["parameters"], models[name]["model_type"], name.split("/")[0]
    smaller = smaller_models(name, made_up.job(parameters=size))
    others = [one for one, config in models.items() if config["model_type"] == family]
    assert set(smaller) == {one for one in others if models[one]["parameters"] < size}
    keys = [(one.split("/")[0] != owner, -models[one]["parameters"]) for one in smaller]
    assert keys == sorted(keys)


def test_what_is_not_bundled_has_no_smaller_one() -> None:
    assert smaller_models("mine", made_up.job()) == []
    assert smaller_models(QWEN, made_up.job(parameters=None)) == []


def test_a_module_is_estimated_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, run = Asked(made_up.need(1)), Asked(made_up.need(2))
    monkeypatch.setattr(jobs, "estimate_training_memory", trained)
    monkeypatch.setattr(jobs, "estimate_inference_memory", run)
    setting = Setting(rows=2, accumulate=2, precision="bf16", optimizer="sgd", world_size=4)
    batch = TensorSpec((4, 8))
    assert module_job(torch.nn.Linear, batch, "cuda").estimates(setting).peak_bytes == 1
    running = module_job(torch.nn.Linear, batch, "cuda", training=False)
    assert running.estimates(setting).peak_bytes == 2
    (asked,) = trained.calls
    assert (asked["accumulate"], asked["precision"], asked["device"]) == (2, "bf16", "cuda")
    assert (asked["optimizer"], asked["world_size"]) == (torch.optim.SGD, 4)
    (asked,) = run.calls
    assert (asked["given"][1].shape, asked["precision"], asked["device"]) == (
        (2, 8),
        "bf16",
        "cuda",
    )
    shared = Setting(world_size=2, sharding="fsdp")
    with pytest.raises(ArgumentError, match="for a transformer's config"):
        module_job(torch.nn.Linear, batch, "cuda").estimates(shared)
