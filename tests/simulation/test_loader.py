import multiprocessing
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mpskit.simulation import lifecycle, simulate
from mpskit.simulation import loader as simulated


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((2,), float(index))


class OnTheMac(Numbers):
    """Wrong on a Mac: an mps tensor cannot leave a worker."""

    def __getitem__(self, index):
        return super().__getitem__(index).to("mps")


class SaysWhereItIs(Numbers):
    def __getitem__(self, index):
        return str(torch.ones(1, device="mps").device), torch.backends.mps.is_available()


def test_one_process():
    with simulate("m1-8gb"):
        for batch in DataLoader(Numbers(), batch_size=4):
            assert batch.is_cpu
            assert batch.to("mps").is_mps
        assert next(iter(DataLoader(OnTheMac(), batch_size=4))).is_mps
        on_mac = TensorDataset(torch.arange(4.0, device="mps"))
        assert next(iter(DataLoader(on_mac, batch_size=2)))[0].is_mps


def test_start_method_is_spawn_inside_and_what_it_was_after():
    before = multiprocessing.get_start_method(allow_none=True)
    with simulate("m1-8gb"):
        assert multiprocessing.get_start_method() == "spawn"
        assert torch.multiprocessing.get_context().get_start_method() == "spawn"
    assert multiprocessing.get_start_method(allow_none=True) == before


def test_workers_are_spawned_and_are_on_the_mac_too():
    with simulate("m1-8gb"):
        loader = DataLoader(SaysWhereItIs(), batch_size=8, num_workers=1)
        devices, available = next(iter(loader))
        assert set(devices) == {"mps:0"}
        assert all(available)


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_an_unpicklable_dataset_fails_as_on_a_mac():
    class Local(Numbers):
        pass

    with (
        simulate("m1-8gb"),
        pytest.raises((AttributeError, pickle.PicklingError), match="local object"),
    ):
        next(iter(DataLoader(Local(), num_workers=1)))


def test_an_mps_tensor_cannot_come_from_a_worker():
    # Torch collates before it shares; in 2.6 and 2.9 the simulated Mac refuses that.
    said = "_share_filename_: only available on CPU|Expected all tensors to be on the same device"
    with simulate("m1-8gb"), pytest.raises(RuntimeError, match=said):
        next(iter(DataLoader(OnTheMac(), batch_size=4, num_workers=1)))


def test_an_mps_tensor_cannot_be_sent_to_a_worker():
    with (
        simulate("m1-8gb"),
        pytest.raises(RuntimeError, match="_share_filename_: only available on CPU"),
    ):
        next(iter(DataLoader(TensorDataset(torch.ones(2, device="mps")), num_workers=1)))


@pytest.mark.from_torch("2.9", "a loader pins for the accelerator in use")
def test_pin_memory_warns_with_the_mac_s_text():
    with simulate("m1-8gb"):
        with pytest.warns(
            UserWarning, match="not supported on MPS now, device pinned memory won't"
        ):
            batch = next(iter(DataLoader(Numbers(), batch_size=4, pin_memory=True)))
        assert not batch.is_pinned()


def test_sampling_is_the_cpu_s():
    def order():
        torch.manual_seed(0)
        return [batch.tolist() for batch in DataLoader(Numbers(), batch_size=2, shuffle=True)]

    plain = order()
    with simulate("m1-8gb"):
        assert order() == plain


@pytest.mark.parametrize(
    ("collate", "refused"),
    [
        (lambda rows: rows[0], True),
        (lambda rows: {"x": rows[0]}, True),
        (lambda rows: ("name", [rows[0].cpu(), rows]), True),
        (lambda rows: {"x": [row.cpu() for row in rows], "name": "x", "number": 3}, False),
        (lambda _: None, False),
    ],
)
def test_what_a_worker_may_send(collate, refused, monkeypatch):
    """As if this process were a worker: what is sent may hold an mps tensor anywhere."""
    with simulate("m1-8gb"):
        batches = iter(DataLoader(OnTheMac(), batch_size=4, collate_fn=collate))
        monkeypatch.setattr(simulated, "get_worker_info", object)
        if refused:
            with pytest.raises(RuntimeError, match="_share_filename_: only available on CPU"):
                next(batches)
        else:
            next(batches)
        monkeypatch.setattr(simulated, "get_worker_info", lambda: None)
        next(batches)


@pytest.mark.parametrize("pins", [False, True])
def test_pinned_tensors_by_torch(pins, monkeypatch):
    """From torch 2.14 a Mac pins; before it says so in a way of its own."""
    known = lifecycle.has
    monkeypatch.setattr(
        lifecycle,
        "has",
        lambda name, torch_: pins if name == "mps.pinned_cpu_tensors" else known(name, torch_),
    )
    with simulate("m1-8gb"):
        for pinned in (
            lambda: torch.zeros(2, pin_memory=True),
            lambda: torch.zeros(2).pin_memory(),
        ):
            if pins:
                assert pinned().tolist() == [0.0, 0.0]
            else:
                with pytest.raises(RuntimeError, match="the devices must match"):
                    pinned()
