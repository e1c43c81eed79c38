"""The first operator that is wrong is named; a device that is right is not accused."""

import copy
import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import planting
import small_models as models
from interrupting import interrupted_at_each_line
from mpskit import Divergence, TensorSpec, find_divergence, simulate
from mpskit.correctness.divergence import _Search
from mpskit.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckError,
    DeviceUnavailableError,
    EstimateError,
)

pytestmark = [
    pytest.mark.needs_torch("simulation"),
    pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated"),
]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def on_mac(model, batch, **how):
    """Compare on a Mac whose GPU draws other numbers than the CPU, as a real one does."""
    with simulate("m1-16gb", rng="separate"):
        return find_divergence(model, batch, **how)


def half(model, batch, dtype):
    low = batch.to(dtype) if torch.is_tensor(batch) and batch.is_floating_point() else batch
    return model.to(dtype), low


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", models.CLEAN)
def test_silent_on_a_right_device(make, train):
    model, batch = make()
    pair = isinstance(batch, tuple) and not train and make is models.mlp
    found = on_mac(model.train(train), batch[0] if pair else batch, train=train)
    assert not found
    assert (found.operator, found.nonfinite, found.script) == (None, None, None)
    assert found.modules_compared >= 1


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(torch.bfloat16, marks=pytest.mark.full),  # as float16, with wider roundings
        torch.float16,
    ],
    ids=str,
)
@pytest.mark.parametrize("make", models.CLEAN)
def test_silent_on_other_rounding(make, dtype, monkeypatch):
    """Each result is off by up to two roundings, at random places: what a GPU may do."""
    planting.plant(monkeypatch, **{name: planting.noisy(name) for name in planting.NOISY})
    model, batch = make()
    if dtype is not torch.float32:
        batch = (
            tuple(b.to(dtype) if b.is_floating_point() else b for b in batch)
            if isinstance(batch, tuple)
            else batch
        )
        model, batch = half(model, batch, dtype)
    found = on_mac(model, batch)
    assert not found, found


@pytest.mark.parametrize("make", [models.mlp, models.encoder, models.gpt2, models.resnet])
def test_every_operator_is_checked_and_right(make):
    model, batch = make()
    with simulate("m1-16gb", rng="separate"):
        places = torch.device("mps"), torch.device("cpu")
        search = _Search(model, batch, _loss, *places, train=True)
        search._run(places[1])
        assert search._searched(lambda _: True) is None
        assert search.checked > 10


def _loss(model, batch):
    out = (
        model(**batch).loss
        if isinstance(batch, dict)
        else model(batch[0] if isinstance(batch, tuple) else batch)
    )
    return out.float().square().mean()


def chain(*layers, bias=True):
    return nn.Sequential(nn.Linear(8, 8, bias=bias), *layers)


def causal(x):
    return functional.scaled_dot_product_attention(x, x, x, is_causal=True)


TWO = (4, 8)
# what is planted, a model and its batch; the operator, module and phase that are named
FAULTS = {
    "a non-contiguous input": (
        {"gelu": planting.gelu_reads_storage},
        (models.Calls(lambda x: functional.gelu(x.t())), TWO),
        ("aten.gelu.default", "", "forward"),
    ),
    "a bias": (
        {"addmm": planting.addmm_without_bias},
        (chain(nn.ReLU(), nn.Linear(8, 4)), TWO),
        ("aten.addmm.default", "0", "forward"),
    ),
    "a long inner size": (
        {"mm": planting.mm_stops_at_512},
        (chain(nn.Linear(8, 700, bias=False), nn.Linear(700, 4, bias=False), bias=False), TWO),
        ("aten.mm.default", "2", "forward"),
    ),
    "a causal mask": (
        {"_scaled_dot_product_flash_attention_for_cpu": planting.attention_leaks},
        (models.Calls(causal), (1, 2, 16, 8)),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", "", "forward"),
    ),
    "the gradient of a frozen input's norm": (
        {"native_layer_norm_backward": planting.layer_norm_backward_frozen},
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), TWO),
        ("aten.native_layer_norm_backward.default", "0", "backward"),
    ),
    "the gradient of an activation": (
        {"threshold_backward": planting.relu_backward_everywhere},
        (chain(nn.ReLU(), nn.Linear(8, 8)), TWO),
        ("aten.threshold_backward.default", "1", "backward"),
    ),
    "a thousandth": (
        {"silu": planting.silu_off_by_a_thousandth},
        (chain(nn.SiLU(), nn.Linear(8, 8)), TWO),
        ("aten.silu.default", "1", "forward"),
    ),
}


# Each runs a step twice and reproduces its fault in a process: one forward, one backward in every
# run, the rest in the full one.
OFTEN = {"a causal mask", "the gradient of an activation"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OFTEN else pytest.mark.full) for name in FAULTS],
)
def test_a_wrong_kernel_is_named(name, monkeypatch, tmp_path):
    kernels, (model, size), (operator, module, phase) = FAULTS[name]
    planting.plant(monkeypatch, **kernels)
    found = on_mac(copy.deepcopy(model), torch.randn(size))
    assert found
    assert found.operator is not None
    named = found.operator
    assert (named.name, named.module, named.phase) == (operator, module, phase)
    assert named.error > 5e-4 > named.allowed > named.cpu_error
    assert found.phase == phase
    assert found.nonfinite is None
    assert operator in str(found)
    assert Divergence.model_validate_json(found.model_dump_json()) == found
    assert found.script_reproduces
    runs_alone(found.save_script(tmp_path / "script.py"))


def runs_alone(path):
    """The script needs torch only; on the CPU, which is right, it finds rounding at most."""
    environ = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(path), "cpu"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    error = float(done.stdout.split("device ")[1].split(",")[0])
    assert error < 1e-5


def test_shapes_strides_and_dtypes_are_told(monkeypatch):
    planting.plant(monkeypatch, gelu=planting.gelu_reads_storage)
    found = on_mac(models.Calls(lambda x: functional.gelu(x.t())), torch.randn(4, 8))
    (operand,) = found.operator.operands
    assert (operand.shape, operand.strides, operand.dtype) == ((8, 4), (1, 8), "float32")
    assert "float32[8, 4] with strides (1, 8)" in str(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_leaking_mask_in_half_precision(monkeypatch, dtype):
    kernel = {"_scaled_dot_product_flash_attention_for_cpu": planting.attention_leaks}
    planting.plant(monkeypatch, **kernel)
    model, batch = half(models.Calls(causal), torch.randn(1, 2, 16, 8), dtype)
    found = on_mac(model, batch)
    assert found.operator.name.startswith("aten._scaled_dot_product")


def test_an_lstm_whose_gradients_ignore_its_dropout(monkeypatch):
    planting.forget_the_mask(monkeypatch)
    found = on_mac(nn.Sequential(nn.LSTM(8, 8, num_layers=2, dropout=0.5)), torch.randn(5, 2, 8))
    assert (found.found, found.module, found.phase) == (True, "0", "backward")
    assert found.error > 0.1


def test_an_lstm_without_dropout_is_not_accused(monkeypatch):
    planting.forget_the_mask(monkeypatch)
    assert not on_mac(nn.LSTM(8, 8, num_layers=2), torch.randn(5, 2, 8))


def test_nan_of_the_device_and_of_the_model(monkeypatch):
    with monkeypatch.context() as planted:
        planting.plant(planted, _softmax=planting.softmax_nan)
        found = on_mac(chain(nn.Softmax(-1)), torch.randn(4, 8))
    assert found
    assert found.operator.error is None
    where = found.nonfinite
    assert (where.kind, where.operator, where.module, where.on_cpu) == (
        "nan",
        "aten._softmax.default",
        "1",
        False,
    )
    own = on_mac(models.Calls(lambda x: (x - 100).log()), torch.randn(4, 8))
    assert not own
    assert own.nonfinite.operator == "aten.log.default"
    assert own.nonfinite.on_cpu


def test_an_overflow_is_told_where_it_arises():
    found = on_mac(models.Calls(lambda x: (x * 1000).exp()), torch.ones(2, 8), train=False)
    assert (found.nonfinite.kind, found.nonfinite.operator) == ("inf", "aten.exp.default")


def test_inputs_are_written_down_where_random_ones_are_right(monkeypatch):
    def wrong_at_a_hundred(self):
        return torch.where(self > 100, self * 0, torch.ops.aten.sigmoid(self))

    planting.plant(monkeypatch, sigmoid=wrong_at_a_hundred)
    found = on_mac(models.Calls(lambda x: (x + 200).sigmoid()), torch.randn(4, 8))
    assert found.script_reproduces
    assert "those of the step" in found.script


def test_a_fault_in_the_module_s_own_code_is_told_without_an_operator():
    def double_on_mac(x):
        return x * 2 if x.device.type == "mps" else x

    found = on_mac(models.Calls(double_on_mac), torch.randn(4, 8))
    assert found
    assert found.operator is None
    assert "own code" in str(found)


def test_steps_of_one_s_own():
    def loss(model, batch):
        random_part = torch.randn(8, device=batch.device) + random.random()
        return (model(batch) + random_part).square().sum()

    def whole_step(model, batch):
        loss(model, batch).backward()

    for step in (loss, whole_step):
        assert not on_mac(nn.Linear(8, 8), torch.randn(4, 8), step=step)


def test_an_optimizer_that_leaves_a_weight_as_it_was(monkeypatch):
    def step(model, batch):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(batch).square().mean().backward()
        optimizer.step()

    model = nn.Linear(8, 4)
    model.weight = nn.Parameter(torch.randn(8, 4).t())
    assert not on_mac(model, torch.randn(4, 8), step=step)
    planting.plant(monkeypatch, addcdiv_=planting.addcdiv_forgets)
    found = on_mac(model, torch.randn(4, 8), step=step)
    assert found.operator.name == "aten.addcdiv_.default"
    assert found.operator.operands[0].strides == (1, 4)


def test_a_model_that_is_made_and_a_batch_without_data():
    assert not on_mac(lambda: nn.Linear(8, 4), TensorSpec((3, 8)))
    assert not on_mac(models.Experts, TensorSpec((3, 16)))
    words = TensorSpec((2, 3), "int64", fill=2)
    assert not on_mac(nn.Embedding(4, 8), words)


def test_model_batch_and_seeds_stay_as_they_are():
    model, batch = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()), torch.ones(4, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recurrent = nn.LSTM(8, 8, num_layers=2, dropout=0.5)
    states = torch.get_rng_state(), random.getstate()
    on_mac(model, batch)
    on_mac(recurrent, torch.ones(5, 2, 8))
    assert recurrent.dropout == 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def fails(model, batch):
    raise ValueError("no such thing")


def fails_on_mac(model, batch):
    if batch.device.type == "mps":
        raise ValueError("not here")
    return model(batch).sum()


@pytest.mark.parametrize(
    ("given", "how", "error", "text"),
    [
        (None, {}, ArgumentTypeError, "nn.Module"),
        (lambda: 3, {}, ArgumentTypeError, "int"),
        (lambda: 1 / 0, {}, CheckError, "making the model fails"),
        (nn.Linear(8, 4), {"step": fails}, CheckError, "the step fails on cpu: ValueError"),
        (nn.Linear(8, 4), {"step": fails_on_mac}, CheckError, "works on cpu and fails on mps"),
        (nn.Linear(7, 4), {}, CheckError, "the step fails on cpu"),
        (nn.Linear(8, 4), {"device": "cuda"}, DeviceUnavailableError, "cuda"),
        (nn.Linear(8, 4), {"device": "cpu"}, ArgumentError, "both 'cpu'"),
        (nn.Linear(8, 4), {"reference": "xpu"}, DeviceUnavailableError, "xpu"),
        (nn.Linear(8, 4), {"device": "nothing"}, ArgumentError, "is not a device"),
        (nn.Linear(8, 4), {"device": 1}, ArgumentTypeError, "device"),
        (nn.Linear(8, 4), {"train": 1}, ArgumentTypeError, "train"),
        (nn.Linear(8, 4), {"step": 0}, ArgumentTypeError, "step must be a function"),
        (nn.ReLU(), {"step": lambda m, b: m(b).detach()}, None, ""),
        (nn.ReLU(), {}, EstimateError, "give step="),
        (nn.Linear(8, 4, dtype=torch.float64), {}, CheckError, "fails on"),
    ],
)
def test_bad_input(given, how, error, text):
    if error is None:
        assert not on_mac(given, torch.ones(2, 8), **how)
        return
    with pytest.raises(error, match=text):
        on_mac(given, torch.ones(2, 8), **how)


def test_an_interrupt_leaves_nothing_changed():
    model, batch = models.mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with simulate("m1-16gb"):
        state = torch.get_rng_state(), random.getstate()
        for _ in interrupted_at_each_line(lambda: find_divergence(model, batch), every=1499):
            assert torch.is_grad_enabled()
            assert torch.equal(torch.get_rng_state(), state[0])
            assert random.getstate() == state[1]
            assert not any(module._forward_hooks for module in model.modules())
            assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_no_batch_and_no_accelerator():
    with pytest.raises(DeviceUnavailableError, match="mpskit simulate"):
        find_divergence(nn.Linear(8, 4), torch.ones(2, 8))
    with pytest.raises(ArgumentError, match="batch"):
        on_mac(nn.Linear(8, 4), None)


def test_a_script_that_is_not_there_or_cannot_be_written(monkeypatch, tmp_path):
    with pytest.raises(ArgumentError, match="no script"):
        on_mac(nn.Linear(8, 4), torch.ones(2, 8)).save_script(tmp_path / "script.py")
    planting.plant(monkeypatch, addmm=planting.addmm_without_bias)
    found = on_mac(nn.Linear(8, 4), torch.ones(2, 8))
    with pytest.raises(ArgumentError, match="cannot be written"):
        found.save_script(tmp_path)
