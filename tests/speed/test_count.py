"""Counts of a step, from the trace that gives its memory."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch

from mpskit import EstimateError, TensorSpec, estimate_training_memory
from mpskit.dispatch.op_counts import OpCounts
from mpskit.speed import Workload
from mpskit.speed.count import class_of_step, count_running, count_with_memory


class First(torch.nn.Module):
    """A recurrent layer without its state."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def of_call(model: torch.nn.Module, *shape: int) -> Workload:
    return Workload.of(model, TensorSpec(shape), training=False)


def test_a_product_is_counted_as_its_multiplications_and_its_bytes():
    counted = of_call(torch.nn.Linear(64, 32), 16, 64)
    assert counted.flops == 2 * 16 * 64 * 32
    assert counted.bytes_moved == 4 * (16 * 64 + 64 * 32 + 32 + 16 * 32)
    assert counted.launches == 1
    assert counted.params == 64 * 32 + 32
    assert (counted.op_class, counted.dtype) == ("gemm", "float32")


def test_training_takes_three_products_for_one_of_the_forward_pass():
    model = torch.nn.Linear(512, 512, bias=False)
    forward = of_call(model, 1024, 512).flops
    # The gradient of the input is needed only where the input has a layer before it.
    one = Workload.of(model, TensorSpec((1024, 512)), optimizer=torch.optim.SGD)
    two = Workload.of(
        torch.nn.Sequential(model, torch.nn.Linear(512, 512, bias=False)),
        TensorSpec((1024, 512)),
        optimizer=torch.optim.SGD,
    )
    assert one.flops == pytest.approx(2 * forward, rel=0.01)
    assert two.flops == pytest.approx(5 * forward, rel=0.01)


def test_convolutions_agree_with_torchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model, image = torch.nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 16, 16)
    with FlopCounterMode(display=False) as mode:
        model(image)
    assert of_call(model, 2, 3, 16, 16).flops == mode.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "gates"), [(torch.nn.LSTM(16, 32, batch_first=True), 4)], ids=["lstm"]
)
def test_a_recurrent_layer_is_a_launch_for_each_time_step(layer, gates):
    counted = of_call(First(layer), 8, 50, 16)
    assert counted.launches >= 50
    assert counted.flops == pytest.approx(2 * 50 * 8 * gates * 32 * (16 + 32), rel=0.05)
    assert Workload.of(First(layer), TensorSpec((8, 50, 16))).op_class == "rnn"


def test_an_embedding_moves_the_rows_it_reads_and_not_the_table():
    counted = Workload.of(
        torch.nn.Embedding(100_000, 64), torch.zeros(1, 10, dtype=torch.long), training=False
    )
    assert counted.bytes_moved == 2 * 4 * 10 * 64


def test_an_expanded_tensor_is_read_from_the_bytes_behind_it():
    class Shifted(torch.nn.Module):
        def forward(self, x):
            return x + torch.ones(1).expand(1024, 1024)

    counted = of_call(Shifted(), 1024, 1024)
    whole = 4 * 1024 * 1024
    assert 2 * whole <= counted.bytes_moved < 2 * whole + 64


def test_an_optimizers_step_counters_are_no_launches():
    model = torch.nn.Linear(4, 4)
    few = Workload.of(model, TensorSpec((2, 4)), optimizer=None).launches
    adam = Workload.of(model, TensorSpec((2, 4)), optimizer=torch.optim.Adam).launches
    assert few < adam <= few + 2 * 9  # two parameters, nine operators each, none on a counter


def test_one_trace_gives_counts_and_the_memory_that_the_estimate_gives():
    model, batch = torch.nn.Linear(128, 128), TensorSpec((64, 128))
    counted, estimate = count_with_memory(model, batch)
    assert estimate == estimate_training_memory(model, batch, device="mps")
    assert counted.peak_bytes == estimate.peak_bytes


def test_what_mps_refuses_is_counted_for_the_cpu():
    counted = Workload.of(torch.nn.Linear(8, 8).double(), TensorSpec((4, 8), dtype="float64"))
    assert counted.dtype == "float64"


def test_a_step_that_cannot_be_traced_is_refused():
    with pytest.raises(EstimateError):
        Workload.of(torch.nn.Linear(8, 8), TensorSpec((4, 9)))


def test_counting_changes_neither_model_nor_random_numbers():
    model = torch.nn.Linear(8, 8)
    before, state = model.weight.detach().clone(), torch.get_rng_state()
    Workload.of(model, TensorSpec((4, 8)))
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.weight.grad is None


def counts(**launches: int) -> OpCounts:
    flops = {"gemm": 100.0, "conv": 100.0, "rnn": 100.0}
    return OpCounts(
        launches=sum(launches.values()),
        launches_by_class=Counter(launches),
        flops_by_class=defaultdict(
            float, {kind: flops.get(kind, 1.0) * n for kind, n in launches.items()}
        ),
    )


@pytest.mark.parametrize(
    ("made", "recurrent", "training", "expected"),
    [
        (counts(gemm=1), False, False, "gemm"),
        (counts(gemm=1, elementwise=2), False, False, "gemm"),
        (counts(softmax=1), False, False, "softmax"),
        (counts(conv=20, norm=20, elementwise=20), False, True, "cnn"),
        (counts(gemm=20, softmax=4, norm=8), False, True, "transformer"),
        (counts(gemm=20, sdpa=4), False, True, "transformer"),
        (counts(gemm=6, elementwise=6), False, True, "mlp"),
        (counts(gemm=600, transcend=900), True, True, "rnn"),
        (counts(rnn=100, elementwise=9), False, True, "rnn"),
        (counts(elementwise=30, sort=4), False, True, None),
        (counts(), False, False, None),
    ],
)
def test_the_class_of_a_step(made, recurrent, training, expected):
    assert class_of_step(made, recurrent=recurrent, training=training) == expected


def test_depthwise_convolutions_make_another_class():
    made = counts(conv=20, norm=20)
    made.depthwise = 10
    assert class_of_step(made, recurrent=False, training=True) == "dwcnn"


@pytest.mark.parametrize(
    ("flops", "launches", "expected"),
    [
        # Four operators at most are one that somebody times alone: the heaviest tells.
        ({"norm": 9.0, "gemm": 1.0}, {"norm": 3, "gemm": 1}, "gemm"),
        ({"norm": 9.0, "gemm": 1.0}, {"norm": 4, "gemm": 1}, None),
        ({"norm": 2.0, "softmax": 1.0}, {"norm": 1, "softmax": 2}, "norm"),
        # Half of the arithmetic, and no more of it a launch than a small one has.
        ({"gemm": 5.0, "norm": 5.0}, {"gemm": 5, "norm": 5}, "mlp"),
        ({"gemm": 4.9, "norm": 5.1}, {"gemm": 5, "norm": 5}, None),
        ({"gemm": 1.4e9}, {"gemm": 10}, "mlp"),
        ({"gemm": 1.41e9}, {"gemm": 10}, None),
        ({"conv": 5.0, "gemm": 5.0}, {"conv": 5, "gemm": 5}, "cnn"),
        ({"rnn": 5.0, "gemm": 5.0}, {"rnn": 5, "gemm": 5}, "rnn"),
        ({"gemm": 1.0}, {"gemm": 9, "softmax": 1, "norm": 1}, "transformer"),
        ({"gemm": 1.0}, {"gemm": 9, "softmax": 1}, "mlp"),
        ({}, {"other": 9}, None),
    ],
)
def test_classes_at_their_bounds(flops, launches, expected):
    made = OpCounts(
        flops=sum(flops.values()),
        launches=sum(launches.values()),
        flops_by_class=defaultdict(float, flops),
        launches_by_class=Counter(launches),
    )
    assert class_of_step(made, recurrent=False, training=False) == expected


@pytest.mark.parametrize(("depthwise", "expected"), [(5, "dwcnn"), (4, "cnn")])
def test_a_quarter_of_depthwise_convolutions(depthwise, expected):
    made = OpCounts(flops=1.0, launches=20, depthwise=depthwise)
    made.flops_by_class["conv"], made.launches_by_class["conv"] = 1.0, 20
    assert class_of_step(made, recurrent=False, training=True) == expected


def test_a_running_step_is_taken_apart_in_inference_mode_too():
    """Torch takes it apart above the interception only where autograd may record."""
    x, weight = torch.ones(4, 8, 16), torch.ones(32, 16)

    def step():
        torch.einsum("abc,dc->abd", x, weight)

    with torch.no_grad():
        plain = count_running(step)
    with torch.inference_mode():
        found = count_running(step)
    assert found.flops == plain.flops == 2 * 4 * 8 * 16 * 32
