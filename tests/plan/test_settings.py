"""Which ways there are to run a step, and in which order they are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.errors import ArgumentError
from mpskit.plan.settings import Setting, batch_sizes, inference_ways, ways

LORA, FULL = Setting(rank=8), Setting()


def test_several_processes_share_the_model_before_it_is_quantized() -> None:
    first = Setting(rank=8, world_size=4)
    found = words(first=first, quantized=("nf4",))
    assert found[0] == "fp32 + DDP on 4"
    assert found.index("bf16-mixed + checkpointing + DDP on 4") < found.index("fp32 + FSDP on 4")
    last = ["4-bit base + DDP on 4", "4-bit base + checkpointing + DDP on 4"]
    assert sorted(found[-2:]) == sorted(last)
    assert not any("4-bit" in way and "FSDP" in way for way in found)


def test_fidelity_shares_the_model_before_it_rounds() -> None:
    found = words(first=Setting(rank=8, world_size=4), prefer="fidelity")
    assert [way.partition(" ")[0] for way in found[:5]] == ["fp32"] * 4 + ["bf16-mixed"]
    assert found[2] == "fp32 + FSDP on 4"


def words(**options: object) -> list[str]:
    asked: dict[str, object] = {"half": "bf16", "mixed": "bf16-mixed", "half_rate": 1.0, **options}
    first = asked.pop("first", LORA)
    return [way.setting.words for way in ways(first, **asked)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # No dtype is faster: what loses least comes first, and checkpointing costs a pass.
        (
            {},
            [
                "fp32",
                "bf16 base",
                "bf16-mixed",
                "fp32 + checkpointing",
                "bf16 base + checkpointing",
                "bf16-mixed + checkpointing",
            ],
        ),
        # Half precision is faster: then float32 comes late.
        (
            {"half_rate": 2.0},
            [
                "bf16 base",
                "bf16-mixed",
                "bf16 base + checkpointing",
                "bf16-mixed + checkpointing",
                "fp32",
                "fp32 + checkpointing",
            ],
        ),
        # What loses nothing comes first, however long it takes.
        (
            {"half_rate": 2.0, "prefer": "fidelity"},
            [
                "fp32",
                "fp32 + checkpointing",
                "bf16-mixed",
                "bf16-mixed + checkpointing",
                "bf16 base",
                "bf16 base + checkpointing",
            ],
        ),
        ({"half": None, "mixed": None}, ["fp32", "fp32 + checkpointing"]),
        ({"half": None, "mixed": None, "checkpoints": False}, ["fp32"]),
        (
            {"mixed": None, "quantized": ("nf4",), "checkpoints": False},
            ["fp32", "bf16 base", "4-bit base"],
        ),
        # No base without adapters: every weight is trained in float32 then.
        (
            {"first": FULL, "mixed": None, "checkpoints": False},
            ["fp32", "fp32 + adafactor"],
        ),
        ({"fixed": {"base": "bf16", "checkpointing": True}}, ["bf16 base + checkpointing"]),
        ({"fixed": {"precision": "fp32", "base": None}}, ["fp32", "fp32 + checkpointing"]),
        # What the user has decided needs no advice.
        (
            {"mixed": None, "fixed": {"precision": "fp16-mixed"}, "checkpoints": False},
            ["fp16-mixed"],
        ),
    ],
)
def test_the_ways_and_their_order(options: dict[str, object], expected: list[str]) -> None:
    assert words(**options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"half": "fp16"}, ["fp16", "fp32"]),
        ({"half": "fp16", "prefer": "fidelity"}, ["fp32", "fp16"]),
        ({"half": None}, ["fp32"]),
        ({"half": "bf16", "quantized": ("int8", "nf4")}, ["bf16", "fp32", "8-bit", "4-bit"]),
        ({"half": "bf16", "fixed": {"precision": "fp32"}}, ["fp32"]),
    ],
)
def test_the_ways_to_run_a_model(options: dict[str, object], expected: list[str]) -> None:
    found = inference_ways(Setting(optimizer="none"), **options)  # type: ignore[arg-type]
    assert [way.setting.words.partition(" base")[0] for way in found] == expected


@given(st.integers(1, 500))
def test_batches_divide_the_effective_one(effective: int) -> None:
    sizes = batch_sizes(effective)
    assert sizes[0] == 1
    assert sizes[-1] == effective
    assert list(sizes) == sorted(sizes)
    assert all(effective % size == 0 for size in sizes)


@given(st.integers(1, 100), st.integers(1, 100))
def test_rows_and_accumulation_make_the_effective_batch(rows: int, times: int) -> None:
    setting = Setting().with_rows(rows, rows * times)
    assert (setting.rows, setting.accumulate) == (rows, times)


def test_a_batch_that_does_not_divide() -> None:
    assert batch_sizes(8, 4) == (4,)
    with pytest.raises(ArgumentError, match="one of 1, 2, 4, 8"):
        batch_sizes(8, 3)


def test_a_batch_of_a_billion_rows_has_its_sizes_at_once() -> None:
    assert len(batch_sizes(10**9)) == 100
    with pytest.raises(ArgumentError, match="more than a step has"):
        batch_sizes(10**10)


@pytest.mark.parametrize(
    ("first", "words", "loss", "time"),
    [
        # Forward, the inputs' gradient and the weights': three passes; adapters leave one out.
        (FULL, "fp32", 0, 3.0),
        (FULL, "fp32 + checkpointing", 0, 4.0),
        (FULL, "bf16-mixed", 1, 1.5),
        (FULL, "fp32 + adafactor", 1, 3.0),
        (LORA, "fp32", 0, 2.0),
        (LORA, "bf16-mixed", 1, 1.05),  # which casts the frozen weights in each pass
        (LORA, "bf16 base", 2, 1.0),
        (LORA, "bf16 base + checkpointing", 2, 1.5),
        (LORA, "8-bit base", 3, 1.0),
        (LORA, "4-bit base", 4, 1.0),
    ],
)
def test_what_a_way_gives_up_and_takes(first: Setting, words: str, loss: int, time: float) -> None:
    asked = {"half": "bf16", "mixed": "bf16-mixed", "quantized": ("int8", "nf4")}
    found = ways(first, half_rate=2.0, **asked)  # type: ignore[arg-type]
    (way,) = [way for way in found if way.setting.words == words]
    assert (way.loss, way.time) == (loss, pytest.approx(time))


def test_a_setting_is_one_row_unless_it_says_more() -> None:
    plain = Setting()
    assert (plain.rows, plain.accumulate, plain.world_size) == (1, 1, 1)
    assert plain.with_rows(16, 8).accumulate == 1
