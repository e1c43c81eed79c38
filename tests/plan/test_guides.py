"""The guides' tables come out of the plan: who fits where, with which batch, and what it takes.

Each row holds the guide's claim and what comes out here. Where they differ the row says why. Times
are in ``tests/speed/test_step_time.py``, as ratios.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest

from mpskit import estimate_from_config, plan_training
from mpskit.plan import TrainingPlan

GB = 10**9


class Row(NamedTuple):
    """A claim: this model trains with adapters on this Mac, at this batch; and what comes out.

    Attributes:
        fits: what the guide says.
        batch: rows of the guide's batch; None where it names none.
        ours: verdict, rows and way that the plan takes.
        why: why the guide is wrong, where the plan says otherwise.
    """

    model: str
    machine: str
    seq_len: int
    fits: bool
    batch: int | None
    ours: tuple[str, int, str]
    why: str = ""


FITS, NOT = "fits", "does-not-fit"
FP32, BF16, AGAIN = "fp32", "bf16 base", "bf16 base + checkpointing"

# Guide 1 for 16 GB: 0.5B and 1.5B recommended, 3B tight, 7B surely not; batches of 4, 2 and 1. It
# names no length: at 128 tokens its batches fit. 3B is tight indeed: only with weights in bfloat16,
# which the guide (float32) does not use.
# Guide 5: which model each chip trains, and Llama-3.2-3B at its batches and lengths.
ROWS = [
    Row("Qwen/Qwen2.5-0.5B", "m1-pro-16gb", 128, True, 4, (FITS, 8, FP32)),
    Row("Qwen/Qwen2.5-1.5B", "m1-pro-16gb", 128, True, 2, (FITS, 2, FP32)),
    Row("Qwen/Qwen2.5-3B", "m1-pro-16gb", 128, True, 1, (FITS, 2, BF16)),
    Row("Qwen/Qwen2.5-7B", "m1-pro-16gb", 128, False, None, (NOT, 1, AGAIN)),
    Row("meta-llama/Llama-3.2-1B", "m1-8gb", 256, True, None, (FITS, 1, BF16)),
    Row("meta-llama/Llama-3.2-1B", "m2-8gb", 256, True, None, (FITS, 1, BF16)),
    Row("meta-llama/Llama-3.2-3B", "m1-pro-16gb", 256, True, None, (FITS, 1, BF16)),
    Row("meta-llama/Llama-3.2-3B", "m1-max-32gb", 256, True, None, (FITS, 2, FP32)),
    Row("meta-llama/Llama-3.2-3B", "m2-24gb", 256, True, None, (FITS, 2, BF16)),
    Row("meta-llama/Llama-3.2-3B", "m2-pro-16gb", 256, True, None, (FITS, 1, BF16)),
    Row("meta-llama/Llama-3.2-3B", "m3-24gb", 256, True, None, (FITS, 2, BF16)),
    Row("meta-llama/Llama-3.2-3B", "m3-pro-18gb", 256, True, None, (FITS, 1, BF16)),
    Row("Qwen/Qwen2.5-7B", "m2-max-96gb", 256, True, None, (FITS, 8, FP32)),
    Row("Qwen/Qwen2.5-14B", "m3-max-128gb", 256, True, None, (FITS, 8, BF16)),
    Row(
        "meta-llama/Llama-3.2-3B",
        "m1-8gb",
        256,
        True,
        1,
        (NOT, 1, AGAIN),
        "the weights alone are 6.0 GiB in bfloat16, of 4.8 that macOS lets a job use there",
    ),
    Row("meta-llama/Llama-3.2-3B", "m1-pro-16gb", 384, True, 1, (FITS, 2, AGAIN)),
    Row("meta-llama/Llama-3.2-3B", "m2-max-32gb", 512, True, 2, (FITS, 1, FP32)),
    Row("meta-llama/Llama-3.2-3B", "m3-max-64gb", 512, True, 4, (FITS, 8, BF16)),
]


@functools.cache
def planned(model: str, machine: str, seq_len: int) -> TrainingPlan:
    return plan_training(model, machine=machine, seq_len=seq_len)


def way(plan: TrainingPlan) -> str:
    return next(one.words for one in plan.compared if one.chosen)


# Each row takes seconds: one that fits and one that does not are in every run, and all in the
# full one, which counts how many of them agree.
QUICK = (ROWS[0], ROWS[3])


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row in QUICK else pytest.mark.full) for row in ROWS],
    ids=lambda row: f"{row.model.partition('/')[2]}-{row.machine}-{row.seq_len}",
)
def test_a_row(row: Row) -> None:
    plan = planned(row.model, row.machine, row.seq_len)
    assert (plan.verdict, plan.batch_size, way(plan)) == row.ours
    assert (bool(plan) == row.fits) or row.why


@pytest.mark.full  # plans every row
def test_nine_rows_of_ten_agree() -> None:
    agreeing = [bool(planned(row.model, row.machine, row.seq_len)) == row.fits for row in ROWS]
    assert sum(agreeing) >= 0.9 * len(ROWS)


@pytest.mark.full  # plans a third of the rows again, with their batches
def test_the_guides_batches_fit() -> None:
    """With accumulation; the plan may choose a faster way with fewer rows."""
    for row in ROWS:
        if row.batch is not None and not row.why:
            plan = plan_training(
                row.model, machine=row.machine, seq_len=row.seq_len, batch=row.batch
            )
            assert plan, row


@pytest.mark.full  # traces GPT-2 medium twice
def test_the_breakdown_before_and_after() -> None:
    """Guide 4: 8 to 9 GB in float32 at 512 tokens, 3.2 to 3.4 GB in float16 at 256.

    Its figures are those of a model of 0.3 billion parameters with every weight trained. float16
    weights lose small updates under Adam, so no plan offers them; the estimate is for comparison.
    """
    before = estimate_from_config(
        "openai-community/gpt2-medium",
        batch_size=1,
        seq_len=512,
        device="mps",
        torch_version="2.13.0",
    )
    after = estimate_from_config(
        "openai-community/gpt2-medium",
        batch_size=1,
        seq_len=256,
        precision="fp16",
        device="mps",
        torch_version="2.13.0",
    )
    assert 7.5 * GB < before.peak_bytes < before.driver_bytes < 9 * GB
    assert 3.2 * GB < after.peak_bytes < 3.5 * GB
    plan = plan_training("openai-community/gpt2-medium", machine="m1-16gb", method="full")
    assert plan.weights_dtype == "float32"


@pytest.mark.parametrize(
    ("device", "rows", "seq_len", "low", "high"),
    [
        ("cpu", 1, 512, 3.5, 4.5),  # guide 1: about 4 GB
        ("mps", 2, 384, 5.0, 7.0),  # guide 1: about 6 GB; it names no length
    ],
)
def test_what_adapters_of_the_smallest_qwen_take(
    device: str, rows: int, seq_len: int, low: float, high: float
) -> None:
    found = estimate_from_config(
        "Qwen/Qwen2.5-0.5B", batch_size=rows, seq_len=seq_len, lora=8, device=device
    )
    assert low * GB < found.peak_bytes < high * GB
