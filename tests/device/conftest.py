import pytest

from mpskit.backends import facts
from mpskit.backends.facts import Found, TorchFacts
from mpskit.backends.kinds import KINDS
from mpskit.device import choice, forget_decisions
from mpskit.host import Host, find_machine


@pytest.fixture
def on_machine(monkeypatch):
    """Put get_optimal_device on another machine: ``on_machine("m1-8gb", mps=True, cuda=0)``."""

    def put(name, *, torch="2.13.0", mps=True, cuda=0, bad_fork=False, built=True, **changes):
        readings = find_machine(name).readings() if isinstance(name, str) else name
        host = Host.from_readings(readings.model_copy(update=changes))
        metal = Found(KINDS["mps"], built=built, count=int(mps), bad_fork=bad_fork)
        cards = Found(KINDS["cuda"], built=cuda > 0, count=cuda, version="12.8" if cuda else None)
        found = TorchFacts(torch, {"mps": metal, "cuda": cards})
        monkeypatch.setattr(choice, "detect_host", lambda **_: host)
        monkeypatch.setattr(facts, "read_torch", lambda: found)
        forget_decisions()
        return host

    yield put
    forget_decisions()
