"""Plans of inference."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mpskit import estimate_from_config
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.plan import InferencePlan, plan_inference

MIB = 2**20


def planned(config: Any, **asked: Any) -> InferencePlan:
    return plan_inference(config, **{"machine": "m1-16gb", **asked})


def test_a_decoder_generates_with_a_cache(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, context=512)
    assert (plan.verdict, plan.batch_size, plan.context) == ("fits", 1, 512)
    # keys and values of 4 layers with 2 heads of 64 numbers, in float16
    assert plan.cache_bytes == 2 * 4 * 2 * 64 * 512 * 2
    alone = estimate_from_config(
        tiny,
        batch_size=1,
        seq_len=256,
        cache_len=512,
        training=False,
        precision="fp16",
        device="mps",
    )
    assert plan.estimate.peak_bytes == alone.peak_bytes


@pytest.mark.parametrize(
    ("machine", "prefer", "dtype"),
    [
        ("m1-16gb", "speed", "float16"),  # M1 emulates bfloat16
        ("m4-16gb", "speed", "bfloat16"),
        ("m1-16gb", "fidelity", "float32"),
        ("T4", "speed", "float16"),
        ("A100", "speed", "bfloat16"),
    ],
)
def test_weights_are_what_the_device_computes_in_fastest(
    tiny: dict[str, Any], machine: str, prefer: Any, dtype: str
) -> None:
    plan = planned(tiny, machine=machine, prefer=prefer, context=64)
    assert plan.weights_dtype == dtype
    assert plan.autocast_dtype is None


def test_the_longest_context_that_fits_is_taken(tiny: dict[str, Any]) -> None:
    assert planned({**tiny, "max_position_embeddings": 8192}).context == 4096
    short = planned(tiny, device="cpu", batch=64, budget="500MiB")
    assert short.verdict == "fits"
    assert short.context < 4096


def test_an_encoder_sees_everything_at_once() -> None:
    plan = planned("google-bert/bert-base-uncased", context=128)
    assert (plan.verdict, plan.cache_bytes) == ("fits", 0)
    assert "decoding" not in plan.reasons["precision"]
    assert "a token" not in str(plan)


def test_a_virtual_mac_has_its_note(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, machine="github-macos-15-vm", context=64)
    assert plan.device == "mps"
    assert "virtual Mac" in plan.notes[0]


def test_a_large_model_says_what_would_fit() -> None:
    plan = planned("Qwen/Qwen2.5-7B", context=512)
    assert plan.verdict == "does-not-fit"
    assert not plan
    assert any(option.machine == "m1-pro-32gb" for option in plan.would_fit)
    assert any("Qwen/Qwen2.5-3B" in option.words for option in plan.would_fit)


def test_a_module_runs_with_its_batch() -> None:
    plan = planned(torch.nn.Linear(100, 10), batch=torch.zeros(4, 100))
    assert (plan.model, plan.verdict, plan.context) == ("Linear", "fits", 0)


@pytest.mark.parametrize(
    ("precision", "share"), [("fp32", 1.0), ("fp16", 0.5), ("bf16", 0.5), ("fp16-mixed", 1.0)]
)
def test_a_modules_figures_are_those_of_its_dtype(precision: str, share: float) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Linear(1000, 1000, bias=False)

    fixed = {"precision": precision}
    plan = planned(make, batch=torch.zeros(1, 1000), fixed=fixed, device="cpu")
    assert plan.estimate.parameters_bytes == 4_000_000 * share
    assert plan.estimate.precision == precision


def test_what_is_fixed_is_not_called_a_choice(tiny: dict[str, Any]) -> None:
    plan = planned(tiny, context=64, fixed={"precision": "bf16"})
    assert plan.reasons["precision"] == "bf16 is fixed"


def test_json(tiny: dict[str, Any]) -> None:
    read = json.loads(planned(tiny, context=64).model_dump_json())
    assert (read["verdict"], read["batch_size"], read["context"]) == ("fits", 1, 64)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"context": 0}, ArgumentError, "context"),
        ({"context": "long"}, ArgumentTypeError, "context"),
        ({"batch": 0}, ArgumentError, "batch"),
        ({"prefer": "size"}, ArgumentError, "prefer is one of"),
        ({"fixed": {"checkpointing": True}}, ArgumentError, "a fixed setting is one of"),
    ],
)
def test_bad_input(
    tiny: dict[str, Any], asked: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        planned(tiny, **asked)


def test_a_context_for_a_module() -> None:
    with pytest.raises(ArgumentError, match="for a transformer's config"):
        planned(torch.nn.Linear(2, 2), batch=torch.zeros(1, 2), context=8)
