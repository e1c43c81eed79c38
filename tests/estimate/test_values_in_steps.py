"""Steps on tensors of all sorts: sparse ones, packed ones, scalers, several kinds of numbers."""

import pytest
import torch
from torch import nn

from mpskit.errors import EstimateError
from mpskit.estimate import TensorSpec, estimate_inference_memory, estimate_training_memory

pytestmark = pytest.mark.needs_torch("estimate")

X = TensorSpec((4, 8))


def told(step, device="mps", model=None, **asked):
    return estimate_training_memory(model or nn.Linear(8, 8), X, step=step, device=device, **asked)


def plain(model, x):
    return model(x).sum()


def test_a_sparse_batch_is_refused():
    with pytest.raises(EstimateError, match="a tensor of the batch is sparse"):
        estimate_training_memory(nn.Linear(8, 8), torch.eye(8).to_sparse(), device="cpu")


def test_what_is_known_may_be_sparse_and_what_is_not_may_not():
    def known(model, x):
        assert torch.eye(3).to_sparse().values().tolist() == [1.0, 1.0, 1.0]
        return plain(model, x)

    def unknown(model, x):
        return model(x).to_sparse().values().sum()

    assert told(known, "cpu").peak_bytes > 0
    with pytest.raises(EstimateError, match="sparse"):
        told(unknown, "cpu")


def test_a_comparison_of_what_is_not_known_is_refused():
    def compares(model, x):
        return plain(model, x) * torch.equal(model(x), x)

    with pytest.raises(EstimateError, match=r"equal"):
        told(compares)


def test_numbers_that_are_known_are_compared():
    def compares(model, x):
        ones, zeros = torch.ones(3), torch.zeros(3, dtype=torch.bool)
        assert torch.isfinite(ones).all()
        assert not torch.where(zeros, 1, 0).any()
        assert not torch.empty(0, dtype=torch.bool).any()
        return torch.where(torch.tensor([True, False] * 4), model(x), 0.0).sum()

    assert told(compares, "cpu").peak_bytes > 0


def scaled(model, batch, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(batch).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def test_a_scaler_takes_every_gradient_for_finite():
    plainly = estimate_training_memory(nn.Linear(8, 8), X, device="cpu")
    found = estimate_training_memory(nn.Linear(8, 8), X, train_step=scaled, device="cpu")
    assert found.optimizer_bytes == plainly.optimizer_bytes > 0


class Packed(nn.Module):
    """A recurrent layer over rows of several lengths."""

    def __init__(self, lengths=None):
        super().__init__()
        self.layer, self.lengths = nn.LSTM(8, 16, batch_first=True), lengths

    def forward(self, x):
        lengths = x[:, 0, 0].long() if self.lengths is None else torch.tensor(self.lengths)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.layer(packed)[1][0].sum()


ROWS = TensorSpec((3, 50, 8))


def test_packed_rows_take_what_their_lengths_say():
    long, short = (
        estimate_training_memory(Packed([50, n, n]), ROWS, device="mps").peak_bytes for n in (50, 1)
    )
    assert long > short


def test_lengths_that_nobody_knows_are_refused():
    with pytest.raises(EstimateError):
        estimate_training_memory(Packed(), ROWS, device="mps")


def test_a_recurrent_layer_keeps_nothing_without_gradients():
    def layer():
        return nn.LSTM(64, 64)

    batch = TensorSpec((100, 4, 64))
    trained = estimate_training_memory(layer, batch, device="cpu")
    run = estimate_inference_memory(layer, batch, device="cpu")
    assert run.parameters_bytes == trained.parameters_bytes
    assert run.peak_bytes < trained.peak_bytes


def test_an_optimizers_own_complaint_is_told_as_it_is():
    with pytest.raises((ValueError, EstimateError), match="Invalid learning rate"):
        told(plain, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=-1.0))


def test_a_call_that_allocates_nothing_has_no_peak():
    found = estimate_inference_memory(nn.Identity(), None, step=lambda *_: None, device="cpu")
    assert (found.peak_bytes, found.peak) == (0, None)
