"""Unmodified trainers: each runs on a simulated Mac and on the CPU, and is compared."""

import contextlib

import pytest

import mpskit
from remembered import remember_traces


@pytest.fixture
def traced_once(monkeypatch):
    """Plan one small model on many machines, and trace each of its settings once."""
    remember_traces(monkeypatch)


@pytest.fixture
def both():
    """Run ``run(device_type)``, which gives a model and losses, before, inside and after.

    The parameters must be on the simulated device inside; the losses of the two runs outside must
    be the same, so that nothing of the Mac is left behind.
    """

    def compare(run, machine="m1-8gb"):
        _, before = run("cpu")
        with mpskit.simulate(machine) as mac:
            model, inside = run("mps")
            assert {str(parameter.device) for parameter in model.parameters()} == {"mps:0"}
            assert mac.peak_allocated_bytes > 0
            assert mac.fallbacks == ()
        _, after = run("cpu")
        assert before == after
        assert len(inside) == len(after) > 1
        return inside, after

    return compare


@pytest.fixture
def on_mac():
    """Run ``run("mps")`` on a simulated Mac; return its losses."""

    def go(run, machine="m1-8gb"):
        with mpskit.simulate(machine):
            model, losses = run("mps")
            assert {str(parameter.device) for parameter in model.parameters()} == {"mps:0"}
            return losses

    return go


@pytest.fixture
def watched(monkeypatch):
    """Record what keeps the machine awake, instead of doing it."""
    from mpskit.integrations import watch

    calls = []

    @contextlib.contextmanager
    def kept(why):
        calls.append(why)
        try:
            yield
        finally:
            calls.append("over")

    monkeypatch.setattr(watch, "keep_awake", kept)
    return calls
