"""The truth for small models: torch's own allocation events over real steps on the CPU."""

import gc
import inspect

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "the measured steps"
# Without it later versions drop the events at the end of a cycle, with a warning.
KEEPING = {"acc_events": True} if "acc_events" in inspect.signature(profile).parameters else {}


def measured_peak(run):
    """Return the most bytes alive while the steps that ``run()`` returns are run."""
    gc.collect()  # what is freed from now on must have been allocated from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, **KEEPING) as prof:
        steps = run()
        gc.collect()
        gc.disable()
        with record_function(MARK):
            steps()
        gc.enable()
    events = prof.profiler.kineto_results.events()
    mark = next(e for e in events if e.name() == MARK)
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    total = most = 0
    for moment, size in memory:
        total += size
        most = total if moment < mark.start_ns() else max(most, total)
    return most


@pytest.fixture
def true_peak():
    """``true_peak(model, batch, loss, optimizer)``: two real steps, parameters and batch included."""

    def measure(make, batch, loss, make_optimizer, dtype=None, mixed=None):
        def run():
            torch.manual_seed(0)
            model = make()
            if dtype is not None:
                model.to(dtype)
            tensors = batch()
            optimizer = make_optimizer(model.parameters())

            def steps():
                for _ in range(2):
                    with torch.autocast("cpu", mixed, enabled=mixed is not None):
                        value = loss(model, tensors)
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad()

            return steps

        return measured_peak(run)

    return measure


@pytest.fixture
def true_peak_of():
    """``true_peak_of(run)``: ``run()`` makes everything and returns the steps."""
    return measured_peak
