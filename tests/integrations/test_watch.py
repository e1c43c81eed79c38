"""What runs around a training, whatever ends it."""

import threading

import pytest
import torch

import mpskit
from mpskit import TrainingPlan, plan_training
from mpskit.integrations.watch import Watch

OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB"


@pytest.fixture(scope="module")
def plan() -> TrainingPlan:
    batch = (mpskit.TensorSpec((4, 8)), mpskit.TensorSpec((4, 1)))
    return plan_training(torch.nn.Linear(8, 1), batch=batch, machine="intel-mac-16gb")


def samplers():
    return [one for one in threading.enumerate() if one.name == "mpskit-memory-monitor"]


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()])
def test_everything_ends_with_the_body(plan, watched, error):
    caught = None
    try:
        with plan.watch() as watch:
            assert samplers()
            watch.step()
            if error is not None:
                raise error
    except BaseException as raised:
        caught = raised
    assert caught is error
    assert watched == ["training Linear", "over"]
    assert not samplers()


def test_a_trainer_within_the_body_neither_starts_nor_ends_it(plan, watched):
    with plan.watch() as watch:
        for _ in range(2):
            watch.begin()
            watch.end()
        assert samplers()
    assert watched == ["training Linear", "over"]


def test_a_training_that_ended_with_an_error_is_put_away_by_the_next(plan, watched):
    watch = plan.watch()
    watch.begin()
    watch.begin()
    assert len(samplers()) == 1
    watch.end()
    watch.end()
    assert watched == ["training Linear", "over"] * 2
    assert not samplers()


def test_if_the_monitor_cannot_start_the_machine_may_sleep(plan, watched, monkeypatch):
    watch = plan.watch()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watch.begin()
    assert watched == ["training Linear", "over"]


def test_running_out_of_memory_carries_the_next_plan(plan, watched):
    error = RuntimeError(OOM)
    said = pytest.raises(mpskit.OutOfMemory, match="Next plan: a batch of 4 x 2 accumulated")
    with said as caught, plan.watch():
        raise error
    assert caught.value.__cause__ is error
    assert caught.value.given is plan
    assert caught.value.next_plan == plan.smaller()


def test_what_the_failed_step_held_is_released(plan, watched):
    import weakref

    held = []

    def step():
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise RuntimeError(OOM)

    with pytest.raises(mpskit.OutOfMemory), plan.watch():
        step()
    assert held[0]() is None


def test_where_nothing_is_left_it_says_what_would_help(plan, watched):
    one = plan.model_copy(update={"batch_size": 1, "accumulate": 8})
    with pytest.raises(mpskit.OutOfMemory, match="a smaller model") as caught, one.watch():
        raise RuntimeError(OOM)
    assert caught.value.next_plan is None


def test_an_answer_that_is_already_there_is_left_alone(plan, watched):
    error = mpskit.OutOfMemory("mine", next_plan=plan)
    with pytest.raises(mpskit.OutOfMemory) as caught, plan.watch():
        raise error
    assert caught.value is error


def test_its_arguments_are_checked(plan):
    for wrong in ({"interval": 0}, {"every": 0}, {"above": "much"}):
        with pytest.raises(mpskit.ArgumentError):
            Watch(plan, **wrong)


@pytest.mark.needs_torch("simulation")
def test_the_cache_is_cleared_when_much_of_it_lies_idle(watched):
    with mpskit.simulate("m1-8gb"):
        batch = (mpskit.TensorSpec((4, 8)), mpskit.TensorSpec((4, 1)))
        plan = plan_training(torch.nn.Linear(8, 1), batch=batch)
        with plan.watch(above="64MiB") as watch:
            held = torch.zeros(2**24, device="mps")  # 64 MiB
            watch.step()
            assert torch.mps.driver_allocated_memory() >= 2**26
            del held
            watch.step()
            assert torch.mps.driver_allocated_memory() < 2**26
