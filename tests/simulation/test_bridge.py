import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mpskit.simulation import simulate


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    """A tensor with a __torch_dispatch__ of its own, around another."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inner = [a.inner if isinstance(a, Wrapped) else a for a in args]
        return cls(func(*inner, **(kwargs or {})))

    def __repr__(self):
        return f"Wrapped({self.inner})"


def test_a_user_s_mode_sees_operators_and_the_mac_stays_a_mac():
    with simulate("m1-8gb") as mac:
        x = torch.ones(2, 2, device="mps", requires_grad=True)
        with Log() as log:
            y = (x @ x).sum()
            made = torch.zeros(3, device="mps")
        y.backward()
        assert made.is_mps
        assert y.is_mps
        assert x.grad.is_mps
        assert "aten::mm" in log.seen
        with Log(), pytest.raises(RuntimeError, match="same device"):
            torch.ones(2, device="mps") + torch.ones(2)
        assert (x + 1).is_mps
        assert mac.allocated_bytes > 0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.zeros(2).is_cpu


def test_flops_are_counted():
    with simulate("m1-8gb"):
        x = torch.ones(4, 4, device="mps")
        with FlopCounterMode(display=False) as counter:
            assert (x @ x).is_mps
        assert counter.get_total_flops() == 2 * 4**3


def test_fake_tensors_inside():
    from torch._subclasses import FakeTensorMode

    with simulate("m1-8gb") as mac:
        with FakeTensorMode():
            model = torch.nn.Linear(4, 4)
            model(torch.ones(1, 4)).sum().backward()
            assert model.weight.grad.shape == (4, 4)
        assert mac.allocated_bytes == 0
        assert torch.ones(1, device="mps").is_mps


def test_wrapper_subclasses():
    with simulate("m1-8gb"):
        x = Wrapped(torch.ones(2, device="mps"))
        y = x * 2 + 1
        assert y.inner.is_mps
        assert y.inner.tolist() == [3.0, 3.0]
        assert torch.ones(1, device="mps").is_mps
    assert torch._C._len_torch_dispatch_stack() == 0
    assert (Wrapped(torch.ones(2)) * 2).inner.is_cpu


# Whose backward has C++ make a tensor from nothing, in one torch or another.
_MADE_IN_BACKWARD = {
    "renorm": lambda x: x.renorm(2, 0, 0.5),
    "split": lambda x: x.split(1)[0],
    "unbind": lambda x: x.unbind(0)[1],
    "prod": lambda x: x.prod(),
    "topk": lambda x: x.topk(2).values,
    "cumprod": lambda x: x.cumprod(0),
    "repeat to nothing": lambda x: x.repeat(0, 2),
}


@pytest.mark.parametrize("name", _MADE_IN_BACKWARD)
def test_what_backward_makes_is_on_its_nodes_device_under_a_mode_too(name):
    with simulate("m3-max-64gb"):
        on_mac = torch.rand(3, 4, device="mps", requires_grad=True)
        on_cpu = torch.rand(3, 4, requires_grad=True)
        with Log() as log:
            for x in (on_mac, on_cpu):
                _MADE_IN_BACKWARD[name](x).sum().backward()
        assert (on_mac.grad.device.type, on_cpu.grad.device.type) == ("mps", "cpu")
    assert len(log.seen) > 4
