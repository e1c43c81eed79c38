"""The user's own line at the peak of an estimate."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mpskit.estimate import TensorSpec, estimate_inference_memory, estimate_training_memory
from mpskit.estimate.trace.user_line import shown

pytestmark = pytest.mark.needs_torch("estimate")

SOURCE = Path(__file__).read_text().splitlines()


def line(mark):
    """Return ``file:line`` of the line that ends in the mark; the file without its folder."""
    number = next(n for n, text in enumerate(SOURCE, 1) if text.endswith(f"# {mark}"))
    return f"{Path(__file__).name}:{number}"


class Wide(nn.Module):
    """Most of its memory is taken by one line."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(8, 512), nn.Linear(512, 1)

    def forward(self, x):
        x = self.into(x)
        x = x.exp()  # the exponential
        x = nn.Softmax(-1)(x)  # the softmax
        return self.out(x)


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Wide()

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


BATCH = TensorSpec((256, 8), "float32")


def loss_of(model, batch):
    return model(batch).sum()


def own_step(model, batch, optimizer):
    loss_of(model, batch).backward()
    optimizer.step()  # the update
    optimizer.zero_grad()


def test_the_line_of_a_forward_pass():
    peak = estimate_inference_memory(Wide(), BATCH, device="mps").peak
    assert peak.op == "exp"
    assert Path(peak.line).name == line("the exponential")


def test_a_backward_pass_has_the_line_that_it_undoes():
    peak = estimate_training_memory(
        Wide(), BATCH, step=loss_of, optimizer=torch.optim.SGD, device="mps"
    ).peak
    assert (peak.op, peak.phase) == ("_softmax_backward_data", "backward")
    assert Path(peak.line).name == line("the softmax")
    assert str(peak).endswith(f"(backward, step 1), {peak.line}")


def test_a_checkpoint_has_the_line_that_runs_again():
    peak = estimate_training_memory(
        Repeated(), BATCH, step=loss_of, optimizer=torch.optim.SGD, device="mps"
    ).peak
    assert peak.phase == "backward"
    assert Path(peak.line).name == line("the softmax")


def test_an_optimizer_has_the_line_of_its_step():
    small = TensorSpec((1, 8), "float32")
    peak = estimate_training_memory(Wide(), small, train_step=own_step, device="mps").peak
    assert peak.phase == "optimizer"
    assert Path(peak.line).name == line("the update")


def test_a_loss_by_a_library_has_the_line_that_calls_it():
    def step(model, batch):
        return nn.functional.mse_loss(model(batch), torch.zeros(()).expand(256, 4096))  # the loss

    peak = estimate_training_memory(
        nn.Linear(8, 4096, bias=False), BATCH, step=step, device="mps"
    ).peak
    assert Path(peak.line).name == line("the loss")


def test_nothing_but_libraries_has_no_line():
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
    peak = estimate_inference_memory(model, BATCH, device="mps").peak
    assert peak is not None
    assert peak.line is None
    assert str(peak).endswith("(inference, step 1)")


def test_code_without_a_file_has_no_line():
    names = {"nn": nn}
    exec("class Model(nn.Module):\n    def forward(self, x):\n        return x.exp()\n", names)
    assert estimate_inference_memory(names["Model"](), BATCH, device="mps").peak.line is None


def test_a_file_outside_of_the_current_folder_keeps_its_path(tmp_path, monkeypatch):
    code = compile("1\n2", str(tmp_path / "job.py"), "exec")
    assert shown((code, 0)) == f"{tmp_path / 'job.py'}:1"
    monkeypatch.chdir(tmp_path)
    assert shown((code, 0)) == "job.py:1"


def test_a_current_folder_that_is_gone_is_no_error(tmp_path, monkeypatch):
    code = compile("1", "job.py", "exec")
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert shown((code, 0)) == "job.py:1"
