"""Nothing that ran before a simulation is remembered inside it, nor the other way round."""

import types

import pytest

import mpskit
from mpskit.dispatch.patches import Patches
from mpskit.simulation import library_caches as caches


def cached(answers):
    import functools

    return functools.cache(lambda: answers[0])


def test_functions_are_emptied_on_entry_and_exit(monkeypatch):
    answers = ["before"]
    module = types.ModuleType("somebody")
    module.is_torch_mps_available = cached(answers)
    module.is_other = cached(answers)
    monkeypatch.setitem(caches.sys.modules, "somebody", module)
    monkeypatch.setattr(caches, "CACHES", (("somebody", "is_torch_.*"),))
    assert (module.is_torch_mps_available(), module.is_other()) == ("before", "before")
    answers[0] = "inside"
    patches = Patches()
    caches.install(patches)
    assert (module.is_torch_mps_available(), module.is_other()) == ("inside", "before")
    answers[0] = "after"
    patches.undo()
    assert module.is_torch_mps_available() == "after"


def test_methods_of_classes_are_emptied(monkeypatch):
    answers = ["before"]
    module = types.ModuleType("somebody")
    module.MPSAccelerator = type(
        "MPSAccelerator",
        (),
        {"is_available": staticmethod(cached(answers)), "__module__": "somebody"},
    )
    monkeypatch.setitem(caches.sys.modules, "somebody", module)
    monkeypatch.setattr(caches, "CACHES", (("somebody", r"MPSAccelerator\.is_available"),))
    assert module.MPSAccelerator.is_available() == "before"
    answers[0] = "inside"
    caches.install(Patches())
    assert module.MPSAccelerator.is_available() == "inside"


def test_states_are_put_back(monkeypatch):
    module = types.ModuleType("somebody")
    module.State = type("State", (), {"shared": {"device": "cpu"}})
    late = types.ModuleType("late")
    late.state = {}
    monkeypatch.setitem(caches.sys.modules, "somebody", module)
    monkeypatch.setattr(caches, "STATES", (("somebody", "State.shared"), ("late", "state")))
    patches = Patches()
    caches.install(patches)
    assert module.State.shared == {}
    module.State.shared["device"] = "mps"
    monkeypatch.setitem(caches.sys.modules, "late", late)
    late.state["device"] = "mps"
    patches.undo()
    assert module.State.shared == {"device": "cpu"}
    assert late.state == {}


@pytest.mark.parametrize(("module", "path"), [*caches.STATES])
def test_every_state_still_exists(module, path):
    pytest.importorskip(module)
    assert any(place == (module, path) for place, _ in caches._states())


def test_lightning_and_transformers_change_their_minds():
    lightning = pytest.importorskip("lightning.pytorch.accelerators.mps")
    transformers = pytest.importorskip("transformers.utils.import_utils")
    answers = []
    for _ in range(2):
        answers.append(
            (lightning.MPSAccelerator.is_available(), transformers.is_torch_mps_available())
        )
        with mpskit.simulate("m1-8gb"):
            answers.append(
                (lightning.MPSAccelerator.is_available(), transformers.is_torch_mps_available())
            )
    assert answers == [(False, False), (True, True)] * 2


def test_mpskits_own_decision_changes_too():
    devices = [mpskit.get_optimal_device().device.type]
    with mpskit.simulate("m1-8gb"):
        devices.append(mpskit.get_optimal_device().device.type)
    devices.append(mpskit.get_optimal_device().device.type)
    assert devices == ["cpu", "mps", "cpu"]
