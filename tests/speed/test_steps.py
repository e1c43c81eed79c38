"""Real steps of a model, on copies of it."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from mpskit import ArgumentError, ArgumentTypeError, TensorSpec
from mpskit.speed.steps import cpu_seconds, step_on


class TestStepOn:
    """Real steps on copies."""

    def test_the_callers_model_stays_as_it_is(self):
        model = torch.nn.Linear(8, 8)
        before = model.weight.detach().clone()
        step_on("cpu", model, torch.ones(4, 8))()
        assert torch.equal(model.weight, before)
        assert model.weight.grad is None

    def test_without_gradients(self):
        model = torch.nn.Linear(8, 8).eval()
        seen: list[bool] = []
        model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        step_on("cpu", model, TensorSpec((4, 8)), training=False)()
        assert seen == [False]

    def test_a_step_of_ones_own_gets_its_optimizer(self):
        seen = []

        def own(model, batch, optimizer):
            seen.append((type(model), batch.shape, type(optimizer)))

        model = torch.nn.Linear(8, 8)
        step_on("cpu", model, TensorSpec((4, 8)), train_step=own, optimizer="SGD")()
        assert seen == [(torch.nn.Linear, (4, 8), torch.optim.SGD)]

    def test_half_precision_weights_and_integers(self):
        model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 8))
        seen: list[torch.dtype] = []
        model[1].register_forward_hook(lambda _, __, result: seen.append(result.dtype))
        step_on("cpu", model, TensorSpec((2, 3), dtype="int64"), precision="bf16")()
        assert seen == [torch.bfloat16]

    @pytest.mark.parametrize(
        ("dtype", "precision", "kept"),
        [
            ("float32", "fp32", torch.float32),
            ("float32", "bf16", torch.bfloat16),
            ("complex64", "bf16", torch.complex64),
        ],
    )
    def test_a_described_batch_is_random(self, dtype, precision, kept):
        seen: list[torch.Tensor] = []

        def step(model, batch):
            seen.append(batch)
            return model.weight.sum()

        spec = TensorSpec((8, 8), dtype=dtype)
        step_on("cpu", torch.nn.Linear(8, 8), spec, step=step, precision=precision)()
        assert seen[0].dtype == kept
        assert seen[0].abs().std() > 0

    def test_a_real_batch_is_copied_and_cast(self):
        seen: list[torch.Tensor] = []

        def step(model, batch):
            seen.extend(batch)
            return model.weight.sum()

        batch = (torch.ones(2, 2), torch.arange(2))
        step_on("cpu", torch.nn.Linear(2, 2), batch, step=step, precision="bf16")()
        assert [part.dtype for part in seen] == [torch.bfloat16, torch.int64]
        assert all(part.data_ptr() != own.data_ptr() for part, own in zip(seen, batch, strict=True))

    def test_what_cannot_be_copied_is_refused(self):
        model = torch.nn.Linear(2, 2)
        model.lock = threading.Lock()
        with pytest.raises(ArgumentTypeError, match="cannot be copied"):
            step_on("cpu", model, torch.ones(1, 2))

    def test_an_optimizer_of_the_callers_own_is_refused(self):
        model = torch.nn.Linear(2, 2)
        with pytest.raises(ArgumentError, match="caller's own parameters"):
            step_on("cpu", model, torch.ones(1, 2), optimizer=torch.optim.SGD(model.parameters()))

    def test_a_name_that_is_no_optimizer(self):
        with pytest.raises(ArgumentError, match="has no 'Adamwww'"):
            step_on("cpu", torch.nn.Linear(2, 2), torch.ones(1, 2), optimizer="Adamwww")

    def test_what_is_no_model(self):
        with pytest.raises(ArgumentTypeError, match="a model is"):
            step_on("cpu", 3, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (0, ArgumentError),
        (-1.0, ArgumentError),
        (math.nan, ArgumentError),
        ("1", ArgumentTypeError),
    ],
)
def test_seconds_are_above_zero(seconds, error):
    with pytest.raises(error, match="seconds"):
        cpu_seconds(torch.nn.Linear(2, 2), torch.ones(1, 2), seconds=seconds)


def test_a_cpu_step_is_timed():
    assert cpu_seconds(torch.nn.Linear(2, 2), torch.ones(1, 2), seconds=0.001) > 0
