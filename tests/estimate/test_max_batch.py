"""max_batch_size: against an exhaustive search, on steps, configs and needs of many shapes."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpskit
from mpskit import MaxBatch, TensorSpec, estimate_from_config, estimate_training_memory
from mpskit._base.sizes import GIB, MIB
from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError, UnknownMachineError
from mpskit.estimate.max_batch import _estimator, _Search, batch_of, max_batch_size
from mpskit.estimate.result import MemoryEstimate

CLASSES = TensorSpec((1,), "int64")


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def encoder():
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(128 * 768, 10))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(1000, 64), nn.Linear(128, 10)
        self.lstm = nn.LSTM(64, 128, batch_first=True)

    def forward(self, words):
        return self.head(self.lstm(self.embedding(words))[0][:, -1])


# The tensors are large, so that a batch is measured in hundreds of MiB, as a real one is.
MODELS = {
    "conv": (conv, (TensorSpec((1, 3, 512, 512)), CLASSES)),
    "encoder": (encoder, (TensorSpec((1, 768, 128)), CLASSES)),
    "lstm": (Lstm, (TensorSpec((1, 2000), "int64"), CLASSES)),
}
ROWS = 32


def exhaustive(name, device, *, training=True):
    model, batch = MODELS[name]
    estimate = _estimator(model, batch if training else batch[0], None, training, device)
    return {rows: estimate(rows) for rows in range(1, ROWS + 1)}


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("name", MODELS)
def test_the_largest_is_that_of_an_exhaustive_search(name, device):
    table = exhaustive(name, {"device": device})
    chosen = random.Random(0)
    tries = []
    for _ in range(40):
        usable = int(chosen.uniform(table[1].peak_high_bytes, table[ROWS - 4].peak_high_bytes))
        largest = max(rows for rows, found in table.items() if found.fits(usable))
        found = _Search(table.__getitem__, usable, tight=True, most=ROWS).run()
        assert 0.95 * largest <= found.batch_size <= largest
        assert found.verdict == found.estimate.fits(usable)
        tries.append(found.tries)
    assert sum(tries) / len(tries) < 5


def test_a_tenth_is_kept_where_tight_does_not_count():
    table = exhaustive("conv", {"device": "mps"})
    for usable in range(GIB // 2, int(table[ROWS - 4].driver_bytes / 0.9), 128 * MIB):
        fitting = [rows for rows, found in table.items() if found.fits(usable).answer == "fits"]
        found = _Search(table.__getitem__, usable, tight=False, most=ROWS).run()
        assert found.batch_size >= 0.95 * max(fitting, default=0)
        assert found.batch_size in [0, *fitting]


def test_the_two_estimates_and_the_one_that_verifies():
    model, batch = MODELS["conv"]
    found = max_batch_size(model, batch, device="cpu", budget="3GiB")
    assert found.tries == 3
    assert found.estimate == estimate_training_memory(
        model,
        (
            TensorSpec((found.batch_size, 3, 512, 512)),
            TensorSpec((found.batch_size,), "int64"),
        ),
        device="cpu",
    )
    assert found.verdict
    assert f"batch size {found.batch_size} on cpu" in str(found)
    assert MaxBatch.model_validate_json(found.model_dump_json()) == found


def test_a_size_that_is_only_tight_is_found_if_asked_for():
    model, batch = MODELS["conv"]
    asked = {"device": "mps", "budget": "2GiB"}
    roomy = max_batch_size(model, batch, **asked)
    tight = max_batch_size(model, batch, tight=True, **asked)
    assert (roomy.verdict.answer, tight.verdict.answer) == ("fits", "tight")
    assert roomy.batch_size < tight.batch_size


def test_inference_takes_more_rows_than_training():
    model, (images, classes) = MODELS["conv"]
    trained = max_batch_size(model, (images, classes), device="mps", budget="2GiB")
    called = max_batch_size(model, images, device="mps", budget="2GiB", training=False)
    assert 0 < trained.batch_size < called.batch_size


def test_options_are_the_estimates():
    def make():
        return nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096))

    settings = {"device": "mps", "budget": "2GiB", "optimizer": None}
    plain = max_batch_size(make, TensorSpec((1, 512, 4096)), **settings)
    half = max_batch_size(make, TensorSpec((1, 512, 4096)), precision="bf16-true", **settings)
    assert half.batch_size > 1.5 * plain.batch_size
    assert half.estimate.precision == "bf16"


@pytest.mark.parametrize(
    ("machine", "device"), [("m1-16gb", "mps"), ("T4", "cuda"), ("intel-mac-32gb", "cpu")]
)
def test_a_config_on_a_machine(machine, device):
    settings = {"seq_len": 128, "lora": 8, "machine": machine}
    found = mpskit.max_batch_size("Qwen/Qwen2.5-0.5B", **settings)
    assert found.estimate.device == device
    assert found.verdict == found.estimate.fits(machine)
    assert found.verdict.answer == "fits"
    beyond = int(found.batch_size / 0.95) + 1
    more = estimate_from_config("Qwen/Qwen2.5-0.5B", batch_size=beyond, **settings)
    assert more.fits(machine).answer != "fits"


def test_what_is_usable_on_this_machine():
    found = max_batch_size(lambda: nn.Linear(8, 1), TensorSpec((1, 8)), device="cpu", most=4)
    assert (found.batch_size, found.tries) == (4, 2)
    assert "most=4" in found.reason


# A batch that cannot shrink, or grow


def test_not_even_one_row():
    found = max_batch_size("Qwen/Qwen2.5-7B", seq_len=512, machine="m1-8gb")
    assert (found.batch_size, found.tries, found.verdict.answer) == (0, 1, "does-not-fit")
    assert found.reason.startswith("1 row would need")
    assert found.estimate.peak_bytes > 8 * GIB


def test_a_batch_norm_that_needs_two_rows():
    def make():
        return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))

    found = max_batch_size(make, TensorSpec((1, 64)), device="mps", budget="64MiB")
    assert found.batch_size > 2
    nothing = max_batch_size(make, TensorSpec((1, 64)), device="mps", budget=MIB // 64)
    assert (nothing.batch_size, nothing.tries) == (0, 1)
    assert "2 rows would need" in nothing.reason
    with pytest.raises(EstimateError, match="Expected more than 1 value"):
        max_batch_size(make, TensorSpec((1, 64)), device="mps", budget="64MiB", most=1)


def test_a_model_that_no_batch_runs():
    with pytest.raises(EstimateError, match="Linear"):
        max_batch_size(lambda: nn.Linear(8, 1), TensorSpec((4, 9)), device="mps", budget="1GiB")


def test_a_need_that_does_not_grow_ends_at_the_most():
    table = {rows: estimate_of(peak=MIB) for rows in range(1, 65_537)}
    found = _Search(table.__getitem__, GIB, tight=True, most=65_536).run()
    assert found.batch_size == 65_536
    assert found.tries < 9


# Any need that grows


def estimate_of(peak, driver=None, parameters=0):
    return MemoryEstimate(
        device="mps",
        torch_version="2.13.0",
        parameters_bytes=parameters,
        peak_bytes=peak,
        driver_bytes=peak if driver is None else driver,
    )


LINES = st.lists(st.tuples(st.integers(0, 2**34), st.integers(1, 2**28)), min_size=1, max_size=4)


@given(lines=LINES, usable=st.integers(2**20, 2**38), most=st.integers(1, 5000))
@settings(max_examples=300, deadline=None)
def test_a_need_that_follows_lines(lines, usable, most):
    """The need of a step: the highest of the moments that can be its peak."""

    def need(rows):
        return max(fixed + slope * rows for fixed, slope in lines)

    largest = min(min((usable - fixed) // slope for fixed, slope in lines), most)
    search = _Search(lambda rows: estimate_of(need(rows)), usable, tight=True, most=most)
    found = search.run()
    assert found.batch_size <= max(largest, 0)
    assert found.batch_size >= min(0.95 * largest, largest) or largest <= 0
    assert found.tries <= 16


@given(step=st.integers(2**20, 2**30), slope=st.integers(2**16, 2**26), limit=st.integers(31, 37))
@settings(max_examples=200, deadline=None)
def test_heaps_that_grow_in_steps(step, slope, limit):
    def found_at(rows):
        peak = slope * rows
        return estimate_of(peak, driver=-(-peak // step) * step)

    usable = 2**limit
    largest = min(int(usable * 0.9) // step * step // slope, 1 << 20)
    found = _Search(found_at, usable, tight=False, most=1 << 20).run()
    assert 0.95 * largest - 1 <= found.batch_size <= largest


# How a batch is scaled


def test_every_tensor_gets_its_rows_and_integers_keep_their_values():
    batch = {
        "ids": torch.tensor([[1, 2], [3, 4]]),
        "mask": TensorSpec((2, 5), "int64", fill=0),
        "pixels": torch.zeros(2, 3, 64, 64),
        "few": torch.tensor([0.5, 1.5]),
        "temperature": torch.tensor(0.7),
        "name": "train",
    }
    scaled = batch_of(batch)(5)
    assert scaled["ids"].tolist() == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    assert scaled["mask"] == TensorSpec((5, 5), "int64", fill=0)
    assert scaled["pixels"] == TensorSpec((5, 3, 64, 64), torch.float32)
    assert scaled["few"].tolist() == [0.5, 1.5, 0.5, 1.5, 0.5]
    assert scaled["temperature"] is batch["temperature"]
    assert scaled["name"] == "train"
    assert batch["ids"].shape == (2, 2)


def test_a_batch_of_any_size_gives_the_same_answer():
    model, _ = MODELS["conv"]
    sizes = {
        max_batch_size(
            model,
            (torch.zeros(rows, 3, 64, 64), torch.zeros(rows, dtype=torch.int64)),
            device="mps",
            budget="1GiB",
        ).batch_size
        for rows in (1, 3, 16)
    }
    assert len(sizes) == 1


def test_a_batch_that_a_callable_makes():
    """The rows of these sequences stand second."""

    def rows_second(rows):
        return TensorSpec((100, rows, 64))

    def step(model, batch):
        return model(batch)[0].mean()

    found = max_batch_size(
        lambda: nn.LSTM(64, 64), rows_second, step=step, device="mps", budget="1GiB"
    )
    more = TensorSpec((100, int(found.batch_size / 0.95) + 1, 64))
    assert found.batch_size > 1
    beyond = estimate_training_memory(lambda: nn.LSTM(64, 64), more, step=step, device="mps")
    assert beyond.fits("1GiB").answer != "fits"


X = TensorSpec((2, 8))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((nn.Linear,), {}, ArgumentError, "needs a batch"),
        ((nn.Linear, X), {"seq_len": 8}, ArgumentError, "seq_len"),
        (("gpt2",), {}, ArgumentError, "seq_len"),
        (("gpt2", X), {"seq_len": 8}, ArgumentError, "no batch"),
        (("gpt2",), {"seq_len": 8, "step": len}, ArgumentError, "no option 'step'"),
        ((nn.Linear, X), {"lora": 8}, ArgumentError, "no option 'lora'"),
        ((nn.Linear, X), {"generate": 8}, ArgumentError, "no option 'generate'"),
        ((nn.Linear, "text"), {}, ArgumentError, "callable"),
        ((nn.Linear, (X, TensorSpec((3, 8)))), {}, ArgumentError, r"\[2, 3\]"),
        ((nn.Linear, TensorSpec((0, 8))), {}, ArgumentError, r"\[0\]"),
        ((nn.Linear, TensorSpec(())), {}, ArgumentError, "no tensor with rows"),
        ((nn.Linear, X), {"most": 0}, ArgumentError, "most"),
        ((nn.Linear, X), {"most": 1.5}, ArgumentTypeError, "most"),
        ((nn.Linear, X), {"training": 1}, ArgumentTypeError, "training"),
        ((nn.Linear, X), {"tight": None}, ArgumentTypeError, "tight"),
        ((nn.Linear, X), {"budget": 0}, ArgumentError, "budget"),
        ((nn.Linear, X), {"budget": 1.5}, ArgumentTypeError, "float"),
        ((nn.Linear, X), {"machine": "m0-1gb"}, UnknownMachineError, "m0-1gb"),
        ((nn.Linear, X), {"machine": "m1-8gb", "device": "cuda"}, ArgumentError, "cuda"),
        (("no-such-model",), {"seq_len": 8}, ArgumentError, "no-such-model"),
        ((3, X), {"device": "cpu"}, ArgumentTypeError, "model"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, options, error, said):
    with pytest.raises(error, match=said):
        max_batch_size(*arguments, **options)
