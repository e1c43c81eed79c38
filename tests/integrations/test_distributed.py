"""Which collective backend a device has, and a plan for several processes."""

import pytest
import torch

import mpskit
from mpskit import plan_training
from mpskit.backends.kinds import KINDS


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "gloo"),
        ("cuda", "nccl"),
        ("cuda:1", "nccl"),
        ("xpu", "xccl"),
        (torch.device("cuda", 0), "nccl"),
    ],
)
def test_each_device_has_its_backend(device, backend):
    assert mpskit.distributed_backend(device) == backend


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.collectives])
def test_torch_names_the_same_one(kind):
    known = torch.distributed.Backend.default_device_backend_map
    if kind.name not in known:
        pytest.skip(f"this torch has no backend for {kind.name}")
    assert known[kind.name] == kind.collectives


@pytest.mark.parametrize("device", ["mps", torch.device("mps")])
def test_mps_is_refused_before_the_first_collective(device):
    with pytest.raises(mpskit.DeviceUnavailableError, match="no collective operations") as caught:
        mpskit.distributed_backend(device)
    assert caught.value.given == device


def test_others_are_refused():
    with pytest.raises(mpskit.ArgumentError, match="no collective backend is known for 'hpu'"):
        mpskit.distributed_backend("hpu")
    with pytest.raises(mpskit.ArgumentTypeError):
        mpskit.distributed_backend(3)


@pytest.mark.needs_torch("simulation")
def test_under_a_launcher_the_choice_warns_on_a_mac(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with mpskit.simulate("m1-8gb"), pytest.warns(mpskit.errors.EnvironmentWarning, match="gloo"):
        device, _ = mpskit.get_optimal_device()
    with pytest.raises(mpskit.DeviceUnavailableError):
        mpskit.distributed_backend(device)


def test_a_plan_for_several_processes_names_their_backend():
    pytest.importorskip("transformers")
    batch = (mpskit.TensorSpec((4, 8)), mpskit.TensorSpec((4, 1)))
    asked = {"batch": batch, "effective_batch": 8, "world_size": 2}
    model = torch.nn.Linear(8, 1)
    cpu = plan_training(model, machine="intel-mac-16gb", **asked)
    assert cpu.apply_to()["ddp_backend"] == "gloo"
    assert plan_training(model, machine="T4", **asked).apply_to()["ddp_backend"] == "nccl"
    with pytest.raises(mpskit.ArgumentError, match="no collective operations for MPS"):
        plan_training(model, machine="m1-8gb", **asked)
