"""Models that do not want to be estimated: a result or a typed error, and nothing changed."""

import contextlib
import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from mpskit.backends import versions
from mpskit.errors import ArgumentError, ArgumentTypeError, EstimateError
from mpskit.estimate import TensorSpec, estimate_inference_memory, estimate_training_memory, targets

pytestmark = pytest.mark.needs_torch("estimate")

X = TensorSpec((8, 16))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.after(self.norm(self.linear(x)))


class ReadsNumber(Base):
    def after(self, y):
        return y * 2 if y.sum().item() > 0 else y


class ReadsTruth(Base):
    def after(self, y):
        return y * 2 if (y > 0).any() else y


class LoopsForEver(Base):
    def after(self, y):
        while y.abs().max().item() > 1e-3:
            y = y * 0.5
        return y


class Nonzero(Base):
    def after(self, y):
        return y[(y > 0).nonzero()[:, 0]]


class Masked(Base):
    def after(self, y):
        return y[y > 0]


class Lists(Base):
    def after(self, y):
        return y * y.tolist()[0][0]


class Arrays(Base):
    def after(self, y):
        return y * float(y.detach().numpy().sum())


class Raises(Base):
    def after(self, y):
        raise KeyError("boom")


class Nothing(Base):
    def after(self, y):
        return None


class Doubles(Base):
    def after(self, y):
        return y.double()


class Nested(Base):
    def after(self, y):
        return None, {"scores": [y]}


class Prints(Base):
    def after(self, y):
        assert "size=(8, 4)" in repr(y)
        return y


class Counts(Base):
    def __init__(self):
        super().__init__()
        self.calls, self.cache = 0, {}
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def after(self, y):
        self.calls += 1
        self.cache["last"] = y
        self.steps += 1
        return y if self.steps.item() < 10 else y * 2


class Elsewhere(Base):
    def after(self, y):
        return y.to("mps") + torch.ones(4, device="mps")


class MetaBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.empty(4, device="meta"))

    def after(self, y):
        return y + self.table


class Svd(Base):
    def after(self, y):
        return torch.linalg.svd(y)[1]


class Ctc(Base):
    def after(self, y):
        scores = y.log_softmax(-1)[:, None].expand(8, 2, 4)
        labels = torch.ones(2, 3, dtype=torch.int64)
        return functional.ctc_loss(scores, labels, torch.tensor([8, 8]), torch.tensor([3, 3]))


class Mapped(Base):
    def after(self, y):
        return torch.vmap(lambda row: row.softmax(0))(y)


ESTIMATED = [ReadsNumber, Nested, Prints, Counts, Elsewhere, MetaBuffer, Svd, Ctc, Mapped]
REFUSED = {
    ReadsTruth: "_local_scalar_dense in ReadsTruth",
    LoopsForEver: "_local_scalar_dense in LoopsForEver",
    Nonzero: "nonzero in Nonzero",
    Masked: "mask in Masked",
    Lists: "tolist",
    Arrays: "numpy",
    Raises: "failed in Raises.*KeyError: 'boom'",
    Nothing: "NoneType",
    Doubles: "no float64",
}


def everything(model):
    tensors = {
        name: None if value.device.type == "meta" else value.clone()
        for name, value in model.state_dict().items()
    }
    fixed = (
        [(id(p), p.requires_grad, p.grad, p.data_ptr(), p.dtype) for p in model.parameters()],
        [(m.training, len(m._forward_hooks), sorted(vars(m))) for m in model.modules()],
        [getattr(model, "calls", None), dict(getattr(model, "cache", {}))],
        random.getstate(),
        torch.get_rng_state().tolist(),
    )
    return tensors, fixed


def assert_untouched(model, before):
    tensors, fixed = everything(model)
    assert fixed == before[1]
    for name, value in tensors.items():
        assert value is None or torch.equal(value, before[0][name]), name


@pytest.mark.parametrize("kind", ESTIMATED)
@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_estimated(kind, device):
    if kind is Ctc and device == "mps":
        pytest.skip("MPS has it from torch 2.14 on: see below")
    model = kind()
    model.linear.register_forward_hook(lambda *_: None)
    before = everything(model)
    assert estimate_training_memory(model, X, device=device).peak_bytes > 0
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name_and_nothing_changed(kind):
    model = kind()
    before = everything(model)
    with pytest.raises(EstimateError, match=REFUSED[kind]):
        estimate_training_memory(model, X, device="mps")
    assert_untouched(model, before)
    assert "tolist" not in vars(torch.Tensor)
    assert model.linear(torch.randn(2, 16)).tolist()


@pytest.mark.parametrize(("version", "refused"), [("2.13.0", True), ("2.14.1", False)])
def test_an_operator_that_mps_lacks(version, refused, monkeypatch):
    monkeypatch.setattr(targets, "has", lambda feature, _: versions.has(feature, version))
    expected = pytest.raises(EstimateError, match=r"_ctc_loss in Ctc.* has no kernel")
    with expected if refused else contextlib.nullcontext():
        assert estimate_training_memory(Ctc(), X, device="mps").peak_bytes > 0


def test_sparse_gradients_are_refused():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(500, 16, sparse=True), nn.Linear(16, 4)

        def forward(self, ids):
            return self.head(self.table(ids))

    for optimizer in (torch.optim.SGD, torch.optim.SparseAdam, None):
        with pytest.raises(EstimateError, match=r"sparse=False"):
            estimate_training_memory(
                Sparse, TensorSpec((8, 4), "int64"), optimizer=optimizer, device="mps"
            )


def test_a_frozen_model_has_nothing_to_train():
    model = Base().requires_grad_(requires_grad=False)
    with pytest.raises(ArgumentError, match="every parameter of Base is frozen"):
        estimate_training_memory(model, X, device="mps")


@pytest.mark.parametrize("given", ["class", "instance", "own step"])
def test_lbfgs_is_refused_by_name(given):
    def step(model, batch, optimizer):
        optimizer.step(lambda: model(batch).sum())

    model = nn.Linear(16, 4)
    optimizer = torch.optim.LBFGS(model.parameters()) if given == "instance" else torch.optim.LBFGS
    more = {"train_step": step} if given == "own step" else {}
    with pytest.raises(EstimateError, match="LBFGS cannot be estimated: how often"):
        estimate_training_memory(model, X, optimizer=optimizer, **more)


MISFITS = {
    "linear": (nn.Linear(16, 4), (8, 16), "Long and Float"),
    "convolution": (nn.Conv2d(4, 4, 3, groups=2), (2, 4, 8, 8), "Input type"),
    "transposed": (nn.ConvTranspose1d(4, 4, 3, stride=2), (2, 4, 8), "Input type"),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16])
def test_dtypes_that_do_not_go_together_fail_as_in_a_real_step(name, dtype):
    model, shape, _ = MISFITS[name]
    with pytest.raises(RuntimeError) as real:
        model(torch.zeros(shape, dtype=dtype))
    with pytest.raises(EstimateError) as told:
        estimate_inference_memory(model, TensorSpec(shape, dtype), device="mps")
    assert str(real.value).rstrip(". ") in str(told.value)


def test_what_a_step_does_to_the_model_is_undone():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())
    weight = model[0].weight
    weight.tag = "kept"
    seen = []
    handle = weight.register_hook(seen.append)

    def train_step(model, batch, optimizer):
        model[1].requires_grad_(requires_grad=False)
        weight.tag = "changed"
        weight.register_hook(lambda grad: grad * 2)
        weight.register_post_accumulate_grad_hook(lambda _: None)
        optimizer.register_step_pre_hook(lambda *_: None)
        optimizer.param_groups[0]["params"].pop()
        optimizer.defaults["lr"] = 3.0
        model(batch).sum().backward()
        optimizer.step()

    estimate_training_memory(model, X, train_step=train_step, optimizer=optimizer, device="cpu")
    assert all(p.requires_grad for p in model.parameters())
    assert weight.tag == "kept"
    assert len(weight._backward_hooks) == 1
    assert not weight._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert len(optimizer.param_groups[0]["params"]) == 4
    assert optimizer.defaults["lr"] == 1e-3
    model(torch.randn(8, 16)).sum().backward()
    assert len(seen) == 3  # of which two in the trace: the hooks of a model run there too
    handle.remove()


def test_float64_is_fine_where_the_device_has_it():
    assert estimate_training_memory(Doubles, X, device="cpu").peak_bytes > 0


def test_a_lazy_module_is_told_to_run_once():
    with pytest.raises(EstimateError, match=r"0\.weight of Sequential has no shape yet"):
        estimate_training_memory(nn.Sequential(nn.LazyLinear(4)), X, device="mps")


def test_gradients_and_an_optimizer_come_back():
    model = Base()
    model.after = lambda y: y
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 16)).sum().backward()
    optimizer.step()
    state, gradient = copy.deepcopy(optimizer.state_dict()), model.linear.weight.grad.clone()
    told = estimate_training_memory(model, X, optimizer=optimizer, device="cpu")
    assert told.optimizer_bytes >= 2 * sum(p.numel() * 4 for p in model.parameters())
    assert str(optimizer.state_dict()) == str(state)
    assert torch.equal(model.linear.weight.grad, gradient)


def test_a_meta_model_keeps_its_ties():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        model[1].weight = model[0].weight
    told = estimate_training_memory(model, X, optimizer=None, device="cpu")
    assert told.parameters_bytes == (16 * 16 + 16 + 16) * 4
    assert model[0].weight.is_meta
    assert model[1].weight is model[0].weight


def test_wrappers_are_taken_off_and_told():
    inner = nn.Linear(16, 4)
    bare = estimate_training_memory(inner, X, device="mps")
    parallel = estimate_training_memory(nn.DataParallel(inner), X, device="mps")
    assert parallel.peak_bytes == bare.peak_bytes
    assert "DataParallel was taken off" in parallel.notes[0]


def test_a_compiled_model_is_traced_as_it_was():
    inner = nn.Linear(16, 4)
    compiled = torch.compile(inner, backend="eager")
    told = estimate_training_memory(compiled, X, device="mps")
    assert told.peak_bytes == estimate_training_memory(inner, X, device="mps").peak_bytes
    assert "compiled" in told.notes[0]


def test_experts_chosen_by_unknown_scores_are_spread_evenly():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(16, 4)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, x):
            weight, index = self.router(x).softmax(-1).topk(2, dim=-1)
            out, sizes = torch.zeros_like(x), []
            for number, expert in enumerate(self.experts):
                token, slot = torch.where(index == number)
                sizes.append(len(token))
                out.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
            assert sizes == [32, 32, 32, 32]
            return out

    assert estimate_training_memory(Experts, TensorSpec((64, 16)), device="mps").peak_bytes > 0


def test_the_batch_is_left_alone():
    ids = torch.tensor([[1, 2, 3, 0]])

    def step(model, batch):
        batch[batch == 0] = -100
        return model(batch.clamp(min=0)).mean()

    estimate_training_memory(lambda: nn.Embedding(10, 4), ids, step=step, device="cpu")
    assert ids.tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"device": "tpu"}, ArgumentError),
        ({"precision": "fp8"}, ArgumentError),
        ({"accumulate": 0}, ArgumentError),
        ({"steps": True}, ArgumentTypeError),
        ({"optimizer": 3}, ArgumentTypeError),
        ({"step": len, "train_step": len}, ArgumentError),
    ],
)
def test_arguments_that_cannot_be_used(change, error):
    with pytest.raises(error):
        estimate_training_memory(nn.Linear(16, 4), X, **change)


def test_what_is_no_model():
    with pytest.raises(ArgumentTypeError, match=r"nn\.Module"):
        estimate_training_memory(3, X, device="mps")
    with pytest.raises(ArgumentTypeError, match="made int"):
        estimate_training_memory(lambda: 3, X, device="mps")
    with pytest.raises(EstimateError, match="no generate"):
        estimate_inference_memory(nn.Linear(16, 4), X, generate=2, device="mps")
    with pytest.raises(ArgumentError, match="not both"):
        estimate_inference_memory(nn.Linear(16, 4), X, step=len, generate=2, device="mps")
