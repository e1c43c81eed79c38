"""dataloader_kwargs by facts and as DataLoader takes them; tune_dataloader by measuring."""

from __future__ import annotations

import inspect
import multiprocessing
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from mpskit import dataloader_kwargs, simulate, to_device, tune_dataloader
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host import Readings, detect_host
from mpskit.host.host import Host
from mpskit.training import loader as module
from mpskit.training import loader_tuning
from mpskit.training.dataset_facts import (
    DatasetFacts,
    ItemCost,
    dataset_facts,
    fits_a_worker,
    is_waiting,
    kept_random_state,
)
from mpskit.training.loader import ExplainedKwargs, LoaderFacts, build, workers_for
from mpskit.training.loader_tuning import LoaderMeasurement

# The parameters of DataLoader.__init__ in torch 2.2; later versions only add to them.
OLDEST = {
    "dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "num_workers", "collate_fn",
    "pin_memory", "drop_last", "timeout", "worker_init_fn", "multiprocessing_context",
    "generator", "prefetch_factor", "persistent_workers", "pin_memory_device",
}  # fmt: skip
QUICK, SLOW, WAITS = ItemCost(1e-6, False), ItemCost(0.01, False), ItemCost(0.01, True)
IN_MEMORY = DatasetFacts("in-memory", length=1000)


class Items(Dataset):
    """Counts what is read from it, and can be slow."""

    def __init__(self, length=64, seconds=0.0):
        self.length = length
        self.seconds = seconds
        self.opened = None

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.opened is None:
            self.opened = "a handle"
        time.sleep(self.seconds)
        random.random(), np.random.random(), torch.rand(1)
        return torch.full((4,), float(index))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(20, 2))


class Broken(Items):
    def __getitem__(self, index):
        raise OSError("disk gone")


def machine(device, data=None, *, usable=8, counted=8, start="fork", batch_size=32):
    return LoaderFacts(device, usable, counted, start, batch_size, data or DatasetFacts())


@pytest.mark.parametrize(
    ("facts", "asked", "workers"),
    [
        # a Mac: none unless asked
        (machine("mps"), None, 0),
        (machine("mps", DatasetFacts("map", length=10**6, cost=SLOW)), None, 0),
        (machine("mps"), 2, 2),
        (machine("mps"), 0, 0),
        # CUDA: some of the CPUs, one left over
        (machine("cuda"), None, 4),
        (machine("cuda", usable=4), None, 3),
        (machine("cuda", usable=2, counted=2), None, 1),
        (machine("cuda", usable=1, counted=1), None, 0),
        (machine("cuda", usable=3, counted=64), None, 2),  # a container's quota
        (machine("cuda", IN_MEMORY), None, 0),
        (machine("cuda", DatasetFacts("iterable")), None, 0),
        (machine("cuda", DatasetFacts("map", length=10**6, cost=QUICK)), None, 0),
        (machine("cuda", DatasetFacts("map", length=10**6, cost=SLOW)), None, 4),
        (machine("cuda", DatasetFacts("map", length=100, cost=SLOW)), None, 0),  # a short epoch
        (machine("cuda", DatasetFacts("map", length=10**4, cost=SLOW), start="spawn"), None, 0),
        (machine("cuda", DatasetFacts("map", length=10**6, cost=SLOW), start="spawn"), None, 4),
        (machine("cuda", DatasetFacts("map", length=40)), None, 2),  # two batches
        # the CPU: only for data that is waited for
        (machine("cpu"), None, 0),
        (machine("cpu", DatasetFacts("map", length=10**6, cost=SLOW)), None, 0),
        (machine("cpu", DatasetFacts("map", length=10**6, cost=WAITS)), None, 4),
        (
            machine("cpu", DatasetFacts("map", length=10**6, cost=WAITS), usable=1, counted=2),
            None,
            2,
        ),
        # what was asked for, as far as it is of use and does not warn
        (machine("cpu"), 3, 3),
        (machine("cpu", usable=2, counted=2), 8, 2),
        (machine("cuda", DatasetFacts("map", length=64)), 8, 2),
        (machine("cuda", DatasetFacts("in-memory", on_accelerator=True, length=9)), 2, 0),
        (machine("cpu", DatasetFacts("iterable")), 2, 2),
        (machine("cpu", DatasetFacts("map", length=0)), 4, 0),
    ],
)
def test_workers_by_facts(facts, asked, workers):
    found, reason = workers_for(facts, asked)
    assert found == workers
    assert reason


@pytest.mark.parametrize(
    ("cost", "said"), [(WAITS, "and mostly waits"), (SLOW, "and keeps a CPU busy")]
)
def test_the_reason_tells_work_from_waiting(cost, said):
    _, reason = workers_for(machine("cuda", DatasetFacts("map", length=10**6, cost=cost)), None)
    assert reason.endswith(said)


@given(
    st.sampled_from(["cpu", "mps", "cuda", "xpu", "hpu"]),
    st.integers(1, 256),
    st.integers(1, 256),
    st.sampled_from(["fork", "forkserver", "spawn", "unheard-of"]),
    st.one_of(st.none(), st.integers(1, 4096)),
    st.builds(
        DatasetFacts,
        st.sampled_from(["unknown", "map", "iterable", "in-memory"]),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 10**9)),
        st.one_of(st.none(), st.builds(ItemCost, st.floats(0, 100), st.booleans())),
    ),
    st.one_of(st.none(), st.integers(0, 1000)),
)
def test_workers_are_never_more_than_asked_for_or_counted(
    device, usable, counted, start, batch_size, data, asked
):
    facts = LoaderFacts(device, min(usable, counted), counted, start, batch_size, data)
    workers, _ = workers_for(facts, asked)
    assert 0 <= workers <= counted
    assert asked is None or workers <= asked
    kwargs = build(facts, workers, "").kwargs
    assert kwargs.keys() <= OLDEST
    assert ("prefetch_factor" in kwargs) is ("persistent_workers" in kwargs) is (workers > 0)
    assert "multiprocessing_context" not in kwargs or workers > 0
    assert not (kwargs["pin_memory"] and device in ("mps", "cpu"))


def test_what_is_returned_for_each_device():
    assert dataloader_kwargs("mps") == {"num_workers": 0, "pin_memory": False}
    assert dataloader_kwargs("cpu", batch_size=4) == {
        "batch_size": 4,
        "num_workers": 0,
        "pin_memory": False,
    }
    assert dataloader_kwargs("cuda:0")["pin_memory"] is True
    assert dataloader_kwargs("mps", num_workers=1) == {
        "num_workers": 1,
        "pin_memory": False,
        "persistent_workers": True,
        "prefetch_factor": 2,
        "multiprocessing_context": "spawn",
    }


def test_reasons_come_for_each_argument():
    explained = dataloader_kwargs("mps", batch_size=2, explain=True)
    assert isinstance(explained, ExplainedKwargs)
    kwargs, reasons = explained
    assert kwargs == dataloader_kwargs("mps", batch_size=2)
    assert kwargs.keys() == reasons.keys()
    assert "imports torch" in reasons["num_workers"]


@pytest.mark.parametrize("device", ["cpu", "mps"])
@pytest.mark.parametrize("num_workers", [None, 0, 1, 1000])
def test_a_loader_takes_them_without_a_warning_and_yields_all(device, num_workers):
    dataset = Items(8)
    kwargs = dataloader_kwargs(device, batch_size=4, num_workers=num_workers, dataset=dataset)
    if device == "mps" and num_workers:
        # Starting new Pythons is tried once, below: here it is enough that the loader is made.
        DataLoader(dataset, **kwargs)
        return
    batches = list(DataLoader(dataset, **kwargs))
    assert torch.cat(batches)[:, 0].tolist() == [float(index) for index in range(8)]


def test_spawned_workers_yield_all():
    dataset = TensorDataset(torch.arange(8.0))
    kwargs = dataloader_kwargs("mps", batch_size=4, num_workers=1, dataset=dataset)
    batches = [batch for (batch,) in DataLoader(dataset, **kwargs)]
    assert torch.cat(batches).tolist() == list(range(8))


def test_a_simulated_mac_loads_and_moves_batches():
    with simulate("m1-8gb"):
        dataset = Items(8)
        kwargs = dataloader_kwargs("mps", batch_size=4, dataset=dataset)
        batches = [to_device(batch, "mps") for batch in DataLoader(dataset, **kwargs)]
        assert [batch.device.type for batch in batches] == ["mps", "mps"]
        assert batches[1][:, 0].tolist() == [4.0, 5.0, 6.0, 7.0]


def test_the_installed_torch_knows_all_that_the_oldest_knew():
    assert inspect.signature(DataLoader.__init__).parameters.keys() >= OLDEST


@pytest.mark.parametrize(
    ("dataset", "kind", "length"),
    [
        (None, "unknown", None),
        (TensorDataset(torch.zeros(3)), "in-memory", 3),
        (Subset(TensorDataset(torch.zeros(3)), [0]), "in-memory", 1),
        (torch.zeros(5, 2), "in-memory", 5),
        ([(torch.zeros(2), torch.zeros(1))] * 4, "in-memory", 4),
        ([torch.zeros(2)], "in-memory", 1),
        ([torch.zeros(2), 1, 2], "in-memory", 3),
        ([1, torch.zeros(2), 2], "map", 3),
        ([1, 2, 3], "map", 3),
        (Items(7), "map", 7),
        (Stream(), "iterable", None),
        ((x for x in ()), "iterable", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_data_set_is(dataset, kind, length):
    facts = dataset_facts(dataset, look=True)
    assert (facts.kind, facts.length) == (kind, length)
    assert not facts.on_accelerator


@pytest.mark.parametrize(("length", "looked"), [(None, 3), (0, 0), (1, 1), (2, 2), (9, 3)])
def test_as_many_items_are_looked_at_as_there_are_and_no_more_than_three(
    monkeypatch, length, looked
):
    monkeypatch.setattr("mpskit.training.dataset_facts._PEEK_S", 600.0)
    seen = []

    class Counted:
        def __getitem__(self, index):
            seen.append(index)
            return index

    class Sized(Counted):
        def __len__(self):
            return length

    facts = dataset_facts(Counted() if length is None else Sized(), look=True)
    assert (seen, facts.length) == (list(range(looked)), length)
    assert (facts.cost is None) is (looked == 0)


def test_data_on_an_accelerator_is_seen():
    assert dataset_facts(TensorDataset(torch.zeros(3, device="meta")), look=True).on_accelerator
    kwargs = dataloader_kwargs("cuda", dataset=TensorDataset(torch.zeros(3, device="meta")))
    assert kwargs == {"num_workers": 0, "pin_memory": False}


def test_items_that_come_on_an_accelerator_are_seen():
    class Away(Items):
        def __getitem__(self, index):
            return {"x": [torch.zeros(2, device="meta")]}

    assert dataset_facts(Away(), look=True).on_accelerator
    assert dataloader_kwargs("cuda", dataset=Away()) == {"num_workers": 0, "pin_memory": False}


def test_looking_tells_work_from_waiting_and_leaves_no_trace():
    dataset = Items(8, seconds=0.005)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    cost = dataset_facts(dataset, look=True).cost
    assert (random.random(), np.random.random(), torch.rand(1).item()) == before
    assert cost.waiting
    assert cost.seconds >= 0.005
    assert dataset.opened is None


@pytest.mark.parametrize(
    ("cpu", "wall", "waiting"),
    [(0.0, 0.01, True), (0.0005, 0.01, True), (0.002, 0.01, False), (0.01, 0.01, False)],
)
def test_work_on_a_busy_machine_is_not_taken_for_waiting(cpu, wall, waiting):
    assert is_waiting(cpu, wall) is waiting


def test_a_data_set_that_fails_is_left_to_the_loader():
    assert dataset_facts(Broken(), look=True).cost is None
    assert dataloader_kwargs("cpu", dataset=Broken())["num_workers"] == 0


def test_a_mac_does_not_look_and_nor_does_a_wish():
    class Untouchable(Items):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    # An item that is looked at would end the test.
    assert dataloader_kwargs("mps", dataset=Untouchable())
    assert dataloader_kwargs("cuda", dataset=Untouchable(), num_workers=1)["num_workers"] == 1


def test_a_generators_own_state_is_kept():
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    with kept_random_state(generator):
        torch.rand(3, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_what_cannot_be_given_to_a_worker():
    assert fits_a_worker(Items())
    assert not fits_a_worker(lambda: None)
    assert not fits_a_worker(torch.zeros(20 * 1024**2))


def test_unasked_workers_are_not_given_what_does_not_pickle(monkeypatch):
    dataset = Items(10**6, seconds=0.01)
    dataset.transform = lambda item: item
    many = LoaderFacts("cuda", 8, 8, "spawn", 32, DatasetFacts("map", length=10**6, cost=SLOW))
    monkeypatch.setattr(module, "loader_facts", lambda *args, **kwargs: many)
    assert dataloader_kwargs("cuda", batch_size=32, dataset=dataset)["num_workers"] == 0
    assert dataloader_kwargs("cuda", batch_size=32, dataset=Items())["num_workers"] == 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"device": 3}, ArgumentTypeError),
        ({"device": "toaster"}, ArgumentError),
        ({"batch_size": 0}, ArgumentError),
        ({"batch_size": "8"}, ArgumentTypeError),
        ({"num_workers": -1}, ArgumentError),
        ({"num_workers": True}, ArgumentTypeError),
        ({"dataset": 5}, ArgumentTypeError),
    ],
)
def test_arguments_nobody_can_use(arguments, error):
    with pytest.raises(error) as caught:
        dataloader_kwargs(**({"device": "cpu"} | arguments))
    assert caught.value.given == next(iter(arguments.values()))


@pytest.fixture
def measured(monkeypatch):
    """Replace clock and loader: ``measured(rate_of, waiting=...)``; returns the counts tried."""

    def replace(rate_of, *, waiting, cpus=4):
        now, tried = [0.0], []

        def run(bench, count, limit):
            bench.batches = 50
            now[0] += limit
            tried.append(count)
            rate = rate_of(count)
            return LoaderMeasurement(
                num_workers=count, start_seconds=0.0, batches_per_second=rate,
                epoch_seconds=50 / rate, waiting=waiting if count == 0 else None,
            )  # fmt: skip

        clock = SimpleNamespace(perf_counter=lambda: now[0])
        monkeypatch.setattr(loader_tuning, "time", clock)
        monkeypatch.setattr(loader_tuning._Bench, "_run", run)
        monkeypatch.setattr(
            module, "loader_facts", lambda *_, **__: machine("cpu", counted=cpus, usable=cpus)
        )
        return tried

    return replace


def test_tuning_finds_that_waiting_needs_workers(measured):
    measured(lambda count: count or 1, waiting=True)
    tuned = tune_dataloader(Items(), "cpu", batch_size=4, seconds=3, max_workers=2)
    assert (tuned.kwargs["num_workers"], tuned.kwargs["persistent_workers"]) == (2, True)
    assert "2.0 times as fast" in str(tuned)
    assert [found.num_workers for found in tuned.measurements] == [0, 1, 2]
    assert tuned.seconds <= 3


def test_tuning_finds_that_data_in_memory_needs_none(measured):
    tried = measured(lambda count: 1 / (count + 1), waiting=False)
    tuned = tune_dataloader(Items(), "cpu", batch_size=8, seconds=3)
    assert (tuned.kwargs["num_workers"], tried[:3]) == (0, [0, 1, 2])
    assert "no faster" in tuned.reason


@pytest.mark.parametrize(("waiting", "most"), [(True, 16), (False, 4)])
def test_tuning_tries_more_workers_than_cpus_only_if_loading_waits(measured, waiting, most):
    tried = measured(lambda count: count + 1, waiting=waiting)
    tuned = tune_dataloader(Items(), "cpu", batch_size=2, seconds=100)
    assert max(tried) == tuned.kwargs["num_workers"] == most
    assert ("DataLoader will warn" in tuned.reason) is waiting


@pytest.mark.parametrize(
    ("rates", "kept"), [((10.0, 5.0, 20.0, 8.0), 20.0), ((10.0, 8.0, 5.0, 5.0), 10.0)]
)
def test_of_several_measurements_of_a_count_the_best_is_kept(measured, rates, kept):
    following = iter(rates)
    tried = measured(lambda _: next(following, 1.0), waiting=False)
    tuned = tune_dataloader(Items(), "cpu", batch_size=4, seconds=10, max_workers=0)
    assert len(tried) > 2
    assert [found.batches_per_second for found in tuned.measurements] == [kept]


def test_tuning_stops_when_its_time_is_over(measured):
    tried = measured(lambda count: count + 1, waiting=True, cpus=64)
    tuned = tune_dataloader(Items(), "cpu", batch_size=2, seconds=1)
    assert tuned.seconds <= 1 + 1e-9
    assert 10 <= len(tried) <= 11


def test_tuning_with_real_workers_leaves_the_data_set_as_it_was():
    dataset = Items(20)
    tuned = tune_dataloader(dataset, "cpu", batch_size=4, seconds=1, max_workers=1)
    assert dataset.opened is None
    assert tuned.measurements[0].waiting is not None
    assert len(list(DataLoader(dataset, **tuned.kwargs))) == 5


def test_tuning_of_streams_and_batch_samplers():
    tuned = tune_dataloader(Stream(), "cpu", batch_size=4, seconds=0.3, max_workers=0)
    assert tuned.measurements[0].batches_per_second > 0
    sampler = torch.utils.data.BatchSampler(range(20), 4, drop_last=False)
    tuned = tune_dataloader(
        Items(20), "cpu", batch_size=None, seconds=0.3, batch_sampler=sampler, max_workers=0
    )
    assert tuned.measurements[0].epoch_seconds > 0


def test_tuning_leaves_random_streams_as_they_were():
    torch.manual_seed(3)
    expected = torch.rand(1).item()
    torch.manual_seed(3)
    tune_dataloader(Items(8), "cpu", batch_size=2, seconds=0.1, max_workers=0, shuffle=True)
    assert torch.rand(1).item() == expected


def fail_in_a_worker(item):
    if torch.utils.data.get_worker_info() is not None:
        raise RuntimeError("not in a worker")
    return torch.stack(item)


def test_a_count_that_fails_is_left_out_with_its_error():
    tuned = tune_dataloader(
        Items(40, seconds=0.002), "cpu", batch_size=2, seconds=1, collate_fn=fail_in_a_worker
    )
    assert tuned.kwargs["num_workers"] == 0
    assert "RuntimeError" in tuned.measurements[1].error
    assert "RuntimeError" in str(tuned)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seconds": 0}, ArgumentError),
        ({"seconds": float("nan")}, ArgumentError),
        ({"seconds": True}, ArgumentTypeError),
        ({"seconds": "3"}, ArgumentTypeError),
        ({"batch_size": 0}, ArgumentError),
        ({"epochs": 0}, ArgumentError),
        ({"max_workers": -1}, ArgumentError),
        ({"dataset": TensorDataset(torch.zeros(0, 2)), "max_workers": 0}, ArgumentError),
        ({"dataset": Broken(), "max_workers": 0}, OSError),
    ],
)
def test_tuning_with_arguments_nobody_can_use(arguments, error):
    defaults = {"dataset": Items(4), "device": "cpu", "batch_size": 2, "seconds": 0.1}
    with pytest.raises(error):
        tune_dataloader(**(defaults | arguments))


def test_a_tuning_unpacks_into_a_loader():
    tuning = tune_dataloader(list(range(8)), "cpu", seconds=0.2, max_workers=0)
    loader = torch.utils.data.DataLoader(list(range(8)), **tuning)
    assert dict(**tuning) == tuning.kwargs
    assert loader.batch_size == 1
    assert len(list(loader)) == 8


# Another machine


@pytest.mark.parametrize(
    ("machine", "counted", "usable", "method"),
    [
        ("m1-8gb", 8, 8, "spawn"),
        ("m3-max-64gb", 16, 16, "spawn"),
        ("intel-mac-32gb", 12, 12, "spawn"),
    ],
)
def test_the_facts_of_another_machine(machine, counted, usable, method):
    from mpskit.host.named import as_host

    facts = module.loader_facts("cpu", 8, None, look=False, host=as_host(machine))
    assert facts.start_method == method
    assert (facts.counted_cpus, facts.usable_cpus) == (counted, usable)


def test_workers_asked_for_are_held_against_the_other_machines_cpus():
    asked = dataloader_kwargs("cuda", machine="m1-8gb", num_workers=64, explain=True)
    assert asked.kwargs["num_workers"] == 8
    assert "8 CPUs" in asked.reasons["num_workers"]


def test_a_machine_of_the_same_system_starts_workers_as_this_one_does():
    here = detect_host()
    readings = Readings(system=here.os_name, logical_cpus=3, memory_total=1 << 33)
    facts = module.loader_facts(
        "cpu", 8, None, look=False, host=Host.from_readings(readings).model_copy()
    )
    if here.os_name == "Linux":
        method = multiprocessing.get_start_method(allow_none=True)
        assert facts.start_method == (method or multiprocessing.get_all_start_methods()[0])
    assert facts.usable_cpus == facts.counted_cpus == 3


@pytest.mark.parametrize(
    ("python", "method"), [((3, 11), "fork"), ((3, 13, 5), "fork"), ((3, 14), "forkserver")]
)
def test_the_usual_way_on_linux_is_that_of_python(python, method, monkeypatch):
    from mpskit.host.named import as_host

    linux, mac = Host.from_readings(Readings(system="Linux")), as_host("m1-8gb")
    monkeypatch.setattr(module.sys, "version_info", python)
    assert module._start_method(linux, mac) == method
    assert module._start_method(mac, linux) == "spawn"


def test_the_start_method_may_be_set_afterwards():
    """In a process of its own, as multiprocessing takes one start method for a whole process."""
    code = (
        "import multiprocessing, mpskit\n"
        "asked = mpskit.dataloader_kwargs('cpu', explain=True)\n"
        "multiprocessing.set_start_method('spawn')\n"
        "print(mpskit.training.loader._start_method(None, mpskit.detect_host()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "spawn"), done.stderr
