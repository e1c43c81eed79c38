import copy
import io
import pickle

import pytest
import torch

from mpskit.simulation import simulate

MPS = torch.device("mps", 0)


def saved(value) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.fixture
def on_mac():
    with simulate("m1-8gb") as machine:
        yield machine


@pytest.mark.parametrize(
    ("location", "device"), [(None, "mps"), ("mps", "mps"), ("cpu", "cpu"), (MPS, "mps")]
)
def test_an_mps_tensor_lands_where_it_is_told(on_mac, location, device):
    loaded = torch.load(saved(torch.ones(3, device="mps")), map_location=location)
    assert loaded.device.type == device
    assert loaded.tolist() == [1.0] * 3


@pytest.mark.parametrize("location", ["mps", "mps:0", torch.device("mps"), lambda s, _: s.mps()])
def test_a_cpu_tensor_can_be_loaded_onto_mps(on_mac, location):
    assert torch.load(saved(torch.ones(3)), map_location=location, weights_only=True).is_mps


def test_a_checkpoint_written_on_the_mac_loads_on_the_cpu_after():
    with simulate("m1-8gb"):
        model = torch.nn.Linear(2, 2, device="mps")
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 2, device="mps")).sum().backward()
        optimizer.step()
        file = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        weight = model.weight.detach().cpu()
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    assert torch.equal(loaded["model"]["weight"], weight)
    assert loaded["model"]["weight"].device.type == "cpu"
    plain = torch.nn.Linear(2, 2)
    plain.load_state_dict(loaded["model"])


def test_resuming_puts_optimizer_state_on_mps(on_mac):
    def trainer():
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2, device="mps")
        return model, torch.optim.AdamW(model.parameters(), 0.1)

    def step(model, optimizer):
        model(torch.ones(1, 2, device="mps")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = trainer()
    step(model, optimizer)
    file = saved({"m": model.state_dict(), "o": optimizer.state_dict()})
    step(model, optimizer)
    again, resumed = trainer()
    state = torch.load(file, map_location="cpu", weights_only=True)
    again.load_state_dict(state["m"])
    resumed.load_state_dict(state["o"])
    assert {s["exp_avg"].device for s in resumed.state.values()} == {MPS}
    step(again, resumed)
    assert torch.equal(again.weight, model.weight)


def test_shared_storages_stay_shared_and_charged_once(on_mac):
    x = torch.zeros(1024, device="mps")
    before = on_mac.allocated_bytes
    a, b = torch.load(saved((x, x[:10])), weights_only=True)
    a[0] = 7
    assert b[0].item() == 7
    assert on_mac.allocated_bytes - before == 4096


def test_pickle_and_deepcopy_keep_the_device(on_mac):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).to("mps")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {t.device for t in copied.state_dict().values()} == {MPS}
        assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()
    tied = torch.nn.ModuleList([model[0], model[0]])
    twin = copy.deepcopy(tied)
    assert twin[0].weight is twin[1].weight


def test_storages_move_like_tensors(on_mac):
    storage = torch.ones(3).untyped_storage()
    moved = storage.mps()
    assert moved.device == MPS
    assert moved.mps() is moved
    assert moved.cpu().device.type == "cpu"
    assert moved.clone().device == MPS
    assert storage.to(device="mps").device == MPS
    assert torch.UntypedStorage(8, device="mps").device == MPS


def test_legacy_format(on_mac):
    file = io.BytesIO()
    torch.save(torch.ones(3, device="mps"), file, _use_new_zipfile_serialization=False)
    file.seek(0)
    assert torch.load(file, weights_only=True).is_mps


def test_safetensors(on_mac, tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(3, device="mps")}, path)
    assert load_file(path)["x"].device.type == "cpu"
    assert load_file(path, device="mps")["x"].is_mps


def test_loading_an_mps_checkpoint_without_a_mac_says_so(tmp_path):
    with simulate("m1-8gb"):
        file = saved(torch.ones(3, device="mps"))
    with pytest.raises(RuntimeError):
        torch.load(file, weights_only=True)


def test_numpy_round_trip(on_mac):
    x = torch.arange(3.0, device="mps")
    assert torch.from_numpy(x.cpu().numpy()).to("mps").tolist() == [0.0, 1.0, 2.0]
