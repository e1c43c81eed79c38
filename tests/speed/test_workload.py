"""What a workload accepts, and what it refuses with which error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError
from mpskit.speed import Workload, predict_speedup

FIELDS = (
    "flops", "bytes_moved", "launches", "params", "peak_bytes", "dtype", "op_class", "training",
    "cpu_seconds", "torch_version",
)  # fmt: skip


def test_every_field_is_optional():
    assert tuple(Workload.model_fields) == FIELDS
    assert set(Workload().model_dump().values()) == {None}
    assert str(Workload()) == "workload: nothing known"


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Workload().flops = 1.0


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [
        (torch.bfloat16, "bfloat16"),
        ("torch.float16", "float16"),
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("float32", "float32"),
        ("float8_e4m3fn", "float8_e4m3fn"),
        (None, None),
    ],
)
def test_dtype(given_dtype, kept):
    assert Workload(dtype=given_dtype).dtype == kept


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("flops", -1),
        ("flops", math.nan),
        ("bytes_moved", math.inf),
        ("launches", -0.5),
        ("params", -1),
        ("params", 0.5),
        ("cpu_seconds", 0),
        ("cpu_seconds", -1e-3),
        ("op_class", ""),
        ("torch_version", ""),
        ("dtype", ""),
        ("flop", 1),
    ],
)
def test_impossible_values(fact, value):
    with pytest.raises(ArgumentError, match=rf"Workload\.{fact}: ") as caught:
        Workload(**{fact: value})
    assert caught.value.given is value or caught.value.given == value


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("flops", "12"),
        ("launches", True),
        ("params", b"1"),
        ("peak_bytes", [1]),
        ("cpu_seconds", torch.nn.ReLU()),
        ("op_class", 3),
        ("dtype", 16),
        ("torch_version", 2.13),
        ("training", "yes"),
    ],
)
def test_wrong_types(fact, value):
    with pytest.raises(ArgumentTypeError) as caught:
        Workload(**{fact: value})
    assert caught.value.given is value or caught.value.given == value


@given(
    st.builds(
        Workload,
        flops=st.none() | st.floats(0, 1e18),
        launches=st.none() | st.integers(0, 10**6),
        op_class=st.none() | st.sampled_from(["gemm", "rnn", "unheard of"]),
        cpu_seconds=st.none() | st.floats(1e-9, 1e4),
        training=st.none() | st.booleans(),
    )
)
def test_json_round_trip(workload):
    assert Workload.model_validate_json(workload.model_dump_json()) == workload
    assert hash(workload) == hash(workload.model_copy())


def test_str_names_what_is_known():
    assert str(Workload(launches=3, op_class="rnn")) == "workload: launches=3.0, op_class=rnn"


class TestMeasure:
    """Counts and a timed step."""

    def test_the_counts_are_those_of_a_trace_and_the_step_is_timed(self):
        model, batch = torch.nn.Linear(16, 16), torch.ones(8, 16)
        options = {"optimizer": "SGD", "precision": "fp32"}
        found = Workload.measure(model, batch, seconds=0.001, **options)
        assert found.cpu_seconds > 0
        counted = Workload.of(model, batch, **options)
        assert found == counted.model_copy(update={"cpu_seconds": found.cpu_seconds})

    def test_the_model_stays_as_it_is(self):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        Workload.measure(model, torch.ones(8, 4), seconds=0.001)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert model[0].weight.grad is None

    def test_a_prediction_rests_on_it(self):
        found = Workload.measure(torch.nn.Linear(4, 4), torch.ones(2, 4), seconds=0.001)
        assert predict_speedup(found, "M1").basis == "cpu-step"

    @pytest.mark.parametrize(
        ("seconds", "error"),
        [(0, ArgumentError), (math.inf, ArgumentError), (None, ArgumentTypeError)],
    )
    def test_seconds_are_above_zero(self, seconds, error):
        with pytest.raises(error, match="seconds"):
            Workload.measure(torch.nn.Linear(4, 4), torch.ones(2, 4), seconds=seconds)

    def test_a_step_that_fails_is_refused_before_it_is_timed(self):
        with pytest.raises(EstimateError):
            Workload.measure(torch.nn.Linear(4, 4), torch.ones(2, 5))


@pytest.mark.parametrize("wrong", [{"step": 0}, {"train_step": "x"}, {"training": None}])
def test_of_refuses_what_is_no_function(wrong):
    with pytest.raises(ArgumentTypeError, match=next(iter(wrong))):
        Workload.of(torch.nn.Linear(4, 4), torch.ones(2, 4), **wrong)


def test_a_sparse_batch_is_refused():
    with pytest.raises(EstimateError, match="sparse"):
        Workload.of(torch.nn.Linear(4, 4), torch.eye(4).to_sparse())
