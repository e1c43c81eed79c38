import pytest
import torch
from torch.nn import functional as F

from mpskit.simulation import simulate


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb") as machine:
        yield machine


def on(*shape):
    return torch.randn(*shape, device="mps")


LOWER = {
    "matmul": lambda: on(2, 3) @ on(3, 2),
    "mm": lambda: torch.mm(on(2, 3), on(3, 2)),
    "bmm": lambda: torch.bmm(on(2, 2, 3), on(2, 3, 2)),
    "linear": lambda: F.linear(on(2, 3), on(4, 3)),
    "module": lambda: torch.nn.Linear(3, 2, device="mps")(on(2, 3)),
    "conv2d": lambda: F.conv2d(on(1, 2, 4, 4), on(3, 2, 3, 3)),
    "einsum": lambda: torch.einsum("ij,jk->ik", on(2, 3), on(3, 2)),
    "attention": lambda: F.scaled_dot_product_attention(*(on(1, 2, 4, 8) for _ in range(3))),
    "heads": lambda: torch.nn.MultiheadAttention(8, 2, device="mps")(*(on(4, 1, 8),) * 3)[0],
}
FLOAT32 = {
    "softmax": lambda: F.softmax(on(2, 3).half(), -1),
    "Tensor.softmax": lambda: on(2, 3).half().softmax(-1),
    "log_softmax": lambda: F.log_softmax(on(2, 3).half(), -1),
    "layer_norm": lambda: F.layer_norm(on(2, 3).half(), (3,)),
    "exp": lambda: on(2).half().exp(),
    "pow": lambda: on(2).half() ** 2,
    "sum": lambda: on(2).half().sum(),
    "mse": lambda: F.mse_loss(on(2).half(), on(2).half()),
    "cross entropy": lambda: F.cross_entropy(on(2, 3).half(), torch.tensor([0, 1], device="mps")),
    "norm": lambda: torch.linalg.vector_norm(on(3).half()),
}
UNTOUCHED = {
    "add": lambda: on(2) + on(2),
    "relu": lambda: F.relu(on(2)),
    "cat": lambda: torch.cat([on(2), on(2)]),
}


@pytest.mark.parametrize("make", LOWER.values(), ids=LOWER.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_lower_precision(make, dtype):
    with torch.autocast("mps", dtype=dtype):
        assert make().dtype is dtype
    assert make().dtype is torch.float32


@pytest.mark.parametrize("make", FLOAT32.values(), ids=FLOAT32.keys())
def test_float32(make):
    with torch.autocast("mps"):
        assert make().dtype is torch.float32
    assert make().dtype is torch.float16


@pytest.mark.parametrize("make", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_what_autocast_leaves_alone(make):
    with torch.autocast("mps"):
        assert make().dtype is torch.float32


def test_promotion_takes_the_widest():
    with torch.autocast("mps"):
        wide = torch.addcmul(on(2), on(2).half(), on(2).half())
        narrow = torch.dot(on(2).half(), on(2).half())
    assert wide.dtype is torch.float32
    assert narrow.dtype is torch.float16


def test_default_is_float16_and_the_state_is_torch_s():
    assert not torch.is_autocast_enabled("mps")
    with torch.autocast("mps"):
        assert torch.is_autocast_enabled("mps")
        assert torch.get_autocast_dtype("mps") is torch.float16
        with torch.autocast("mps", enabled=False):
            assert (on(2, 2) @ on(2, 2)).dtype is torch.float32
    assert not torch.is_autocast_enabled("mps")


def test_cpu_tensors_are_left_alone():
    with torch.autocast("mps"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_another_dtype_warns_and_switches_it_off():
    with (
        pytest.warns(UserWarning, match="In MPS autocast, but the target dtype is not supported"),
        torch.autocast("mps", dtype=torch.float64),
    ):
        assert (on(2, 2) @ on(2, 2)).dtype is torch.float32


def test_weights_are_cast_once_and_forgotten_after(mac):
    layer = torch.nn.Linear(256, 256, bias=False, device="mps")
    x = on(1, 256)
    before = mac.allocated_bytes
    with torch.autocast("mps"):
        first = layer(x)
        grown = mac.allocated_bytes
        second = layer(x)
        assert mac.allocated_bytes - grown < 256 * 256 * 2
        del first, second
    assert mac.allocated_bytes == before


def test_gradients_go_back_to_float32_weights():
    layer = torch.nn.Linear(4, 2, device="mps")
    with torch.autocast("mps"):
        loss = layer(on(3, 4)).float().sum()
    loss.backward()
    assert layer.weight.grad.dtype is torch.float32
    assert layer.weight.grad.is_mps


def test_bit_equal_to_the_cpu_under_the_same_casts():
    torch.manual_seed(0)
    weight, x = torch.randn(4, 8), torch.randn(3, 8)
    with torch.autocast("mps", torch.bfloat16):
        on_mac = F.softmax(F.linear(x.to("mps"), weight.to("mps")), -1)
    by_hand = F.softmax(F.linear(x.bfloat16(), weight.bfloat16()).float(), -1)
    assert torch.equal(on_mac.cpu(), by_hand)


@pytest.mark.needs_torch("mps.grad_scaler")
def test_grad_scaler_trains():
    model = torch.nn.Linear(4, 1, device="mps")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("mps")
    before = model.weight.detach().clone()
    for _ in range(2):
        with torch.autocast("mps"):
            loss = model(on(3, 4)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler._scale.device == torch.device("mps", 0)
    assert not torch.equal(model.weight, before)


def test_decorator_and_nested_threads():
    @torch.autocast("mps")
    def run():
        return on(2, 2) @ on(2, 2)

    assert run().dtype is torch.float16
