"""The next smaller plan."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mpskit import TrainingPlan
from mpskit.estimate import MemoryEstimate


def made(**fields):
    """Return a plan whose figures nobody looks at."""
    known = {
        "model": "tiny",
        "machine": "m1-8gb",
        "device": "mps",
        "verdict": "fits",
        "batch_size": 8,
        "loader": {"batch_size": fields.get("batch_size", 8), "num_workers": 0},
        "needed_bytes": 1,
        "usable_bytes": 2,
        "estimate": MemoryEstimate.model_construct(),
        "method": "full",
        "learning_rate": 1e-3,
        "epochs": 1,
        "cap_bytes": 2,
    }
    return TrainingPlan.model_construct(**(known | fields))


def chain(plan):
    while plan is not None:
        yield plan
        plan = plan.smaller()


@given(st.integers(1, 64), st.integers(1, 12), st.booleans(), st.sampled_from([None, 128]))
def test_every_next_plan_needs_less_and_steps_over_as_many_rows(rows, count, again, length):
    plan = made(batch_size=rows, accumulate=count, checkpointing=again, seq_len=length)
    plans = list(chain(plan))
    assert {one.effective_batch for one in plans} == {rows * count}
    sizes = [(one.batch_size, not one.checkpointing) for one in plans]
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(
        after[0] <= before[0] // 2 or before[0] == 1 for before, after in itertools.pairwise(sizes)
    )
    assert plans[-1].batch_size == 1
    assert all(one.loader["batch_size"] == one.batch_size for one in plans)


def test_a_transformer_checkpoints_at_one_row_and_a_plain_module_does_not():
    assert made(batch_size=1, seq_len=128).smaller().checkpointing
    assert made(batch_size=1).smaller() is None
    assert made(batch_size=1, seq_len=128, checkpointing=True).smaller() is None


def test_it_says_what_its_figures_are():
    assert "after 8 rows ran out of memory" in made().smaller().notes[-1]
