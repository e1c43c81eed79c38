import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mpskit.simulation import simulate

MPS = torch.device("mps", 0)


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb") as machine:
        yield machine


def test_gradients_of_mps_leaves_are_on_mps():
    x = torch.ones(3, device="mps", requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad.device == MPS
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


def test_gradient_comes_back_across_to():
    leaf = torch.ones(3, requires_grad=True)
    (leaf.to("mps") * 3).sum().backward()
    assert leaf.grad.device.type == "cpu"
    assert leaf.grad.tolist() == [3.0] * 3


def test_gradient_goes_forth_across_cpu():
    leaf = torch.ones(3, device="mps", requires_grad=True)
    (leaf.cpu() * 3).sum().backward()
    assert leaf.grad.device == MPS


def test_there_and_back_again_with_another_dtype():
    leaf = torch.ones(3, requires_grad=True)
    moved = leaf.to("mps", torch.float16)
    assert moved.requires_grad
    assert not moved.is_leaf
    (moved.to("cpu", torch.float32) * 5).sum().backward()
    assert leaf.grad.device.type == "cpu"
    assert leaf.grad.dtype is torch.float32


def test_copy_into_an_mps_tensor_brings_the_gradient_back():
    leaf = torch.ones(3, requires_grad=True)
    target = torch.zeros(3, device="mps")
    target.copy_(leaf)
    (target * 2).sum().backward()
    assert leaf.grad.device.type == "cpu"
    assert leaf.grad.tolist() == [2.0] * 3


def test_a_number_on_the_cpu_gets_its_gradient_there():
    scale = torch.tensor(2.0, requires_grad=True)
    (torch.ones(3, device="mps") * scale).sum().backward()
    assert scale.grad.device.type == "cpu"
    assert scale.grad.item() == 3.0


def test_hooks_see_mps_gradients():
    seen = []
    x = torch.ones(3, device="mps", requires_grad=True)
    y = x * 2
    y.register_hook(lambda g: seen.append((g.device, torch.ones(1).device)))
    y.sum().backward()
    model = torch.nn.Linear(2, 2, device="mps")
    model.register_full_backward_hook(lambda m, gi, go: seen.append((go[0].device, None)))
    model(x[:2]).sum().backward()
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append((p.grad.device, None)))
    x.grad = None
    model(x[:2]).sum().backward()
    assert [device for device, _ in seen] == [MPS] * len(seen)
    assert seen[0][1] == torch.device("cpu")


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        assert x.is_mps
        assert gradient.is_mps
        assert torch.zeros(1).is_cpu
        assert torch.zeros(1, device="mps").is_mps
        return gradient * 2 + torch.zeros_like(x) + torch.tensor([0.0, 0.0, 0.0], device="mps")


def test_custom_function():
    x = torch.ones(3, device="mps", requires_grad=True)
    Double.apply(x).sum().backward()
    assert x.grad.is_mps
    assert x.grad.tolist() == [2.0] * 3


class TwoOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, one, two):
        assert one.is_mps
        assert two.is_mps  # made by the engine, for nobody used the second output
        return one * 2 + two * 3


def test_gradients_that_the_engine_makes_are_on_mps():
    x = torch.ones(3, device="mps", requires_grad=True)
    TwoOutputs.apply(x)[0].sum().backward()
    assert x.grad.is_mps


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_on_mps(reentrant):
    devices = []

    def block(x):
        devices.append((x.device, torch.ones(1).device, torch.zeros(2, device="mps").device))
        return torch.nn.functional.dropout((x * 2).relu(), 0.5)

    def gradient(device):
        torch.manual_seed(3)
        x = torch.ones(16, device=device, requires_grad=True)
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()
        return x.grad

    on_mac = gradient("mps")
    assert devices == [(MPS, torch.device("cpu"), MPS)] * 2
    devices.clear()
    assert torch.equal(on_mac.cpu(), gradient("cpu"))


def test_saved_tensors_kept_on_the_cpu():
    kept = []

    def pack(x):
        kept.append(x.cpu())
        return kept[-1]

    x = torch.ones(3, device="mps", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y.to("mps")):
        y = (x * x).sum()
    y.backward()
    assert {t.device.type for t in kept} == {"cpu"}
    assert x.grad.is_mps
    with torch.autograd.graph.save_on_cpu():
        z = (x * x).sum()
    z.backward()
    assert x.grad.tolist() == [4.0] * 3


def test_higher_order_gradients():
    x = torch.tensor([2.0], device="mps", requires_grad=True)
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert (first.item(), second.item()) == (12.0, 12.0)
    assert second.is_mps


LAYERS = {
    "linear": (lambda: torch.nn.Linear(8, 4), (2, 8)),
    "conv": (lambda: torch.nn.Conv2d(3, 4, 3, padding=1), (2, 3, 8, 8)),
    "transposed conv": (lambda: torch.nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 4, 4)),
    "batch norm": (lambda: torch.nn.BatchNorm2d(3), (2, 3, 4, 4)),
    "group norm": (lambda: torch.nn.GroupNorm(1, 3), (2, 3, 4, 4)),
    "layer norm": (lambda: torch.nn.LayerNorm(8), (2, 8)),
    "rms norm": (lambda: torch.nn.RMSNorm(8), (2, 8)),
    "max pool": (lambda: torch.nn.MaxPool2d(2), (2, 3, 8, 8)),
    "average pool": (lambda: torch.nn.AdaptiveAvgPool2d(2), (2, 3, 8, 8)),
    "dropout": (lambda: torch.nn.Dropout(0.3), (4, 8)),
    "gelu": (lambda: torch.nn.GELU(), (4, 8)),
    "upsample": (lambda: torch.nn.Upsample(scale_factor=2), (2, 3, 4, 4)),
    "encoder": (
        lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (2, 5, 8),
    ),
    "pixel shuffle": (lambda: torch.nn.PixelShuffle(2), (2, 4, 4, 4)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_layers_are_bit_equal_to_the_cpu(make, shape):
    def run(device):
        torch.manual_seed(5)
        layer = make().to(device)
        x = torch.randn(shape).to(device).requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        gradients = [p.grad for p in layer.parameters()]
        return [out, x.grad, *gradients, *layer.buffers()]

    on_mac, on_cpu = run("mps"), run("cpu")
    assert {t.device for t in on_mac} == {MPS}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(on_mac, on_cpu, strict=True))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(kind):
    def run(device):
        torch.manual_seed(5)
        layer = getattr(torch.nn, kind)(6, 5, 2, batch_first=True).to(device)
        x = torch.randn(2, 4, 6).to(device)
        out, _ = layer(x)
        out.sum().backward()
        return [out, *(p.grad for p in layer.parameters())]

    on_mac, on_cpu = run("mps"), run("cpu")
    assert {t.device for t in on_mac} == {MPS}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(on_mac, on_cpu, strict=True))


def test_attention_is_the_cpu_s_own():
    def run(device):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 16, 8).to(device).requires_grad_() for _ in range(3))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.sum().backward()
        return [out, q.grad, k.grad, v.grad]

    assert all(torch.equal(a.cpu(), b) for a, b in zip(run("mps"), run("cpu"), strict=True))


def test_a_gradient_on_the_wrong_device_is_refused():
    x = torch.ones(3, device="mps", requires_grad=True)
    with pytest.raises(
        RuntimeError, match="invalid gradient at index 0 - expected device mps:0 but got cpu"
    ):
        (x * 2).backward(torch.ones(3))


# Backwards in which C++ makes a tensor without looking at another one.
SIDES = {
    "topk": lambda x: x.topk(2).values,
    "sort": lambda x: x.sort().values,
    "cummax": lambda x: torch.cummax(x, 1).values,
    "pool": lambda x: torch.nn.functional.avg_pool1d(x, 2),
    "max": lambda x: x.max(1).values,
    "median": lambda x: x.median(1).values,
    "clamp": lambda x: torch.clamp_max(x, torch.full_like(x, 0.5)),
    "where": lambda x: torch.where(x > 0.5, x, 0.0),
    "pow": lambda x: x ** torch.full_like(x, 2.0),
    "index": lambda x: x[:, torch.tensor([0, 1])],
    "prod": lambda x: x.prod(1),
    "norm": lambda x: torch.linalg.vector_norm(x, 3, 1),
    "slice": lambda x: x[:, :1],
    "gather": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.int64)),
    "unfold": lambda x: x.unfold(1, 2, 1),
}


def _loss(make, device, loss_device):
    torch.manual_seed(2)
    leaf = torch.rand(3, 4).to(device).requires_grad_()
    return leaf, make(leaf * 2).to(loss_device).square().sum()


NEEDS = {"cummax": pytest.mark.from_torch("2.8", "MPS has _cummax_helper")}


@pytest.mark.parametrize("loss_device", ["same", "other"])
@pytest.mark.parametrize(
    "make", [pytest.param(SIDES[n], id=n, marks=NEEDS.get(n, ())) for n in SIDES]
)
def test_a_backward_runs_where_its_forward_ran(make, loss_device):
    expected, loss = _loss(make, "cpu", "cpu")
    loss.backward()
    other = {"mps": "cpu", "cpu": "mps"}
    for device in ("mps", "cpu"):
        where = device if loss_device == "same" else other[device]
        leaf, loss = _loss(make, device, where)
        torch.ones(2, device=other[device]) + 1
        loss.backward()
        assert leaf.grad.device.type == device
        assert torch.equal(leaf.grad.cpu(), expected.grad)


class Crossing(torch.autograd.Function):
    """One output on each device, from an input on the CPU."""

    @staticmethod
    def forward(ctx, x):
        return x.to("mps"), x * 2

    @staticmethod
    def backward(ctx, one, two):
        assert one.is_mps
        assert two.is_cpu
        # Composite kernels, which make tensors of their own in C++.
        assert torch.ones(2, 2).tril().kron(torch.ones(1)).is_cpu
        assert torch.nn.functional.one_hot(torch.zeros(2, dtype=torch.int64), 3).is_cpu
        return one.cpu() + two


def test_a_function_that_leads_to_another_device():
    x = torch.rand(3, 4, requires_grad=True)
    one, two = Crossing.apply(x)
    one, two = one.sort().values, two.sort().values
    torch.ones(2) + 1
    (one.sum().cpu() + two.sum()).backward()
    assert x.grad.is_cpu
    assert x.grad.tolist() == [[2.0] * 4] * 3


def test_a_function_bound_before_the_simulation(mac):
    mac.__exit__(None, None, None)
    try:
        apply = Double.apply
    finally:
        mac.__enter__()
    x = torch.ones(3, device="mps", requires_grad=True)
    y = apply(x).sort().values.sum()
    torch.ones(2) + 1
    y.backward()
    assert x.grad.is_mps


def test_a_long_way_to_the_leaf():
    x = torch.rand(4, device="mps", requires_grad=True)
    y = x
    for _ in range(3000):
        y = y + 1
    y = y.sort().values
    torch.ones(2) + 1
    y.cpu().sum().backward()
    assert x.grad.is_mps


def test_a_function_that_returns_more_than_tensors_with_a_gradient():
    class Halves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            whole = torch.arange(2, device="mps")
            ctx.mark_non_differentiable(whole)
            return x / 2, whole, "halves"

        @staticmethod
        def backward(ctx, gradient, *_):
            return gradient / 2

    x = torch.ones(2, device="mps", requires_grad=True)
    half, whole, name = Halves.apply(x)
    assert (whole.grad_fn, name) == (None, "halves")
    half.sum().backward()
    assert x.grad.is_mps
    assert x.grad.tolist() == [0.5, 0.5]


def test_hooks_of_a_graph_that_outlives_the_mac(mac):
    unpacked = []

    def unpack(value):
        unpacked.append(value.device.type)
        return value

    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, unpack):
        loss = (x * x).sum()
    mac.__exit__(None, None, None)
    loss.backward()
    mac.__enter__()
    assert x.grad.tolist() == [2.0, 2.0]
    assert set(unpacked) == {"cpu"}
