"""Each sentence of a plan's reasons, from made-up figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.plan.made_up import GIB, MIB, found, job

from mpskit.plan.defaults import Optimizer
from mpskit.plan.places import Place, find_place
from mpskit.plan.reasons import reasons
from mpskit.plan.search import Found, Search
from mpskit.plan.settings import Setting

MAC = find_place("m1-16gb")
LORA = Setting(rank=8, seq_len=512, rows=8)
FULL = Setting(seq_len=512, rows=8)
ADAMW = Optimizer("adamw", "")


def told(setting: Setting, size: int = MIB, **asked: Any) -> dict[str, str]:
    """Return the reasons for a setting that needs ``size`` bytes of a GiB."""
    model: Any = asked.pop("model", job())
    place: Place = asked.pop("place", MAC)
    taken = found(setting, size, GIB)
    beside: list[Found] = [taken]
    for other, needs in asked.pop("beside", {}).items():
        beside.append(found(other, needs * MIB, GIB))
    search = Search(model.estimates, GIB, asked.pop("sizes", (1, 2, 4, 8)), 8)
    asked = {"optimizer": ADAMW, "told": False, "fixed": {}} | asked
    return reasons(model, place, search, taken, beside, **asked)


@pytest.mark.parametrize(
    ("setting", "fields", "said"),
    [
        (LORA, {"parameters": None}, "the config does not say its parameters"),
        (LORA, {"parameters": 299_999_999}, "no way to train every weight fits"),
        (LORA, {"parameters": 300_000_000}, "as is usual from 300 million parameters on"),
        (FULL, {"parameters": 1_000_000}, "the model has less than 300 million parameters"),
        (FULL, {"adapts": False}, ""),
    ],
)
def test_the_method(setting: Setting, fields: dict[str, Any], said: str) -> None:
    text = told(setting, model=job(**fields)).get("method", "")
    assert said in text
    assert bool(said) == bool(text)
    assert "method" not in told(setting, model=job(**fields), told=True)


MIXED, HALF = replace(LORA, precision="bf16-mixed"), replace(LORA, base="bf16")


@pytest.mark.parametrize(
    ("setting", "beside", "said"),
    [
        (LORA, {}, ""),
        (LORA, {HALF: 2}, "float32 (1.00 MiB in float32, 2.00 MiB with a half-precision base)"),
        (
            LORA,
            {MIXED: 2},
            (
                "float32 (1.00 MiB in float32, 2.00 MiB with autocast): autocast adds half-precision "
                "copies of the frozen weights"
            ),
        ),
        # As much or less is no copy, and without adapters no weight is frozen.
        (LORA, {MIXED: 1}, "float32 (1.00 MiB in float32, 1.00 MiB with autocast)"),
        (
            FULL,
            {replace(FULL, precision="bf16-mixed"): 2},
            "float32 (1.00 MiB in float32, 2.00 MiB with autocast)",
        ),
        # Only ways that differ in precision alone are compared.
        (LORA, {replace(HALF, checkpointing=True): 2, replace(HALF, optimizer="sgd"): 2}, ""),
        (LORA, {replace(HALF, sharding="ddp"): 2}, ""),
        (
            HALF,
            {LORA: 3, replace(LORA, base="int8"): 4, replace(LORA, base="nf4"): 5},
            (
                "frozen weights are stored in bf16 (3.00 MiB in float32, 1.00 MiB with a half-precision"
                " base, 4.00 MiB with an 8-bit base, 5.00 MiB with a 4-bit base); the adapters stay "
                "float32, so no update is lost"
            ),
        ),
        (replace(LORA, base="nf4"), {}, ""),
    ],
)
def test_the_precision_and_what_the_others_need(
    setting: Setting, beside: dict[Setting, int], said: str
) -> None:
    assert told(setting, beside=beside).get("precision", "") == said


def test_autocast_is_told_with_the_machines_reason_only_where_that_advises_it() -> None:
    card = find_place("A100")
    advised = card.precision.autocast_dtype
    assert advised == "bfloat16"
    why = card.precision.reasons[0].rstrip(".")
    assert told(MIXED, place=card)["precision"] == why
    other = replace(LORA, precision="fp16-mixed")
    assert told(other, place=card)["precision"] == "autocast"


def test_a_fixed_precision_is_told_with_its_costs_alone() -> None:
    fixed = {"precision": "bf16-mixed"}
    assert told(MIXED, fixed=fixed)["precision"] == "bf16-mixed is fixed"
    beside = {LORA: 3}
    assert told(MIXED, fixed=fixed, beside=beside)["precision"] == (
        "bf16-mixed is fixed (3.00 MiB in float32, 1.00 MiB with autocast)"
    )


def test_checkpointing_says_what_it_saves() -> None:
    again = replace(LORA, checkpointing=True)
    said = told(again, beside={replace(MIXED): 9, LORA: 3})["checkpointing"]
    assert "(3.00 MiB without)" in said
    assert "MiB" not in told(again)["checkpointing"]
    assert "checkpointing" not in told(LORA, beside={again: 1})


@pytest.mark.parametrize(
    ("rows", "size", "sizes", "said"),
    [
        (8, MIB, (1, 2, 4, 8), ""),
        (4, MIB, (4,), ""),
        (2, MIB, (1, 2, 4, 8), "the largest of 1, 2, 4, 8 that fits"),
        (1, 2 * GIB, (1, 2, 4, 8), "the smallest there is"),
        (1, GIB - 1, (1, 2, 4, 8), "the smallest there is"),
    ],
)
def test_the_batch(rows: int, size: int, sizes: tuple[int, ...], said: str) -> None:
    text = told(replace(LORA, rows=rows), size, sizes=sizes).get("batch_size", "")
    assert text.startswith(said)
    assert bool(said) == bool(text)
    assert ("keeps the effective batch at 8" in text) is ("largest" in said)


@pytest.mark.parametrize(
    ("length", "size", "lengths", "said"),
    [
        (512, MIB, (512, 256), ""),
        (256, MIB, (256,), ""),
        (300, MIB, (256,), ""),
        (None, MIB, (512, 256), ""),
        (256, MIB, (512, 256), "longer rows than 256 tokens do not fit"),
        (256, GIB - 1, (512, 256), "longer rows than 256 tokens do not fit"),
        (256, 2 * GIB, (512, 256), "the shortest rows that are tried"),
    ],
)
def test_the_length(length: int | None, size: int, lengths: tuple[int, ...], said: str) -> None:
    model = job(lengths=lengths)
    text = told(replace(LORA, seq_len=length), size, model=model).get("seq_len", "")
    assert text.startswith(said)
    assert bool(said) == bool(text)


def test_the_optimizer() -> None:
    assert "optimizer" not in told(LORA)
    lean = replace(FULL, optimizer="adafactor")
    assert "a row and a column" in told(lean)["optimizer"]
    assert told(lean, optimizer=Optimizer("adafactor", "because"))["optimizer"] == "because"


def test_the_sharding_and_what_the_other_needs() -> None:
    ddp = replace(LORA, world_size=4, sharding="ddp")
    fsdp = replace(ddp, sharding="fsdp")
    assert "sharding" not in told(LORA)
    both = told(ddp, beside={fsdp: 2, replace(fsdp, base="bf16"): 7})["sharding"]
    assert both == (
        "the whole model fits in each process (2.00 MiB with fully_shard): only gradients are sent"
    )
    assert "MiB" not in told(ddp)["sharding"]
    share = told(fsdp, beside={ddp: 3})["sharding"]
    assert "(3.00 MiB with DistributedDataParallel)" in share
    assert "one part in 4 of weights" in share
    assert "MiB" not in told(fsdp)["sharding"]


@pytest.mark.parametrize(
    ("setting", "missing", "said"),
    [
        (replace(LORA, base="int8"), None, "nothing wider fits"),
        (replace(LORA, base="nf4"), "bitsandbytes", "nothing wider fits"),
        (LORA, "bitsandbytes>=1", "none; 4-bit weights would need pip install 'bitsandbytes>=1'"),
        (LORA, None, ""),
        (FULL, "bitsandbytes>=1", ""),
    ],
)
def test_the_quantization(
    setting: Setting, missing: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpskit.plan.reasons.missing_quantization", lambda _: missing)
    text = told(setting).get("quantization", "")
    assert text.startswith(said)
    assert bool(said) == bool(text)
    assert "quantization" not in told(setting, fixed={"base": setting.base})
