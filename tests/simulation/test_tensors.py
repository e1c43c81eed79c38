import copy
import pickle

import numpy as np
import pytest
import torch

from mpskit.simulation import simulate

MPS = torch.device("mps", 0)


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb") as machine:
        yield machine


CONSTRUCTORS = {
    "zeros": lambda d: torch.zeros(2, 3, device=d),
    "empty": lambda d: torch.empty(2, device=d),
    "arange": lambda d: torch.arange(4, device=d),
    "randn": lambda d: torch.randn(2, device=d),
    "randint": lambda d: torch.randint(0, 9, (3,), device=d),
    "randperm": lambda d: torch.randperm(4, device=d),
    "full": lambda d: torch.full((2,), 3.0, device=d),
    "eye": lambda d: torch.eye(3, device=d),
    "linspace": lambda d: torch.linspace(0, 1, 5, device=d),
    "tensor": lambda d: torch.tensor([1, 2], device=d),
    "tensor of a list of floats": lambda d: torch.tensor([[1.0], [2.0]], device=d),
    "as_tensor of a list": lambda d: torch.as_tensor([1.0, 2.0], device=d),
    "as_tensor of numpy": lambda d: torch.as_tensor(np.ones(3, np.float32), device=d),
    "as_tensor of a tensor": lambda d: torch.as_tensor(torch.ones(3), device=d),
    "asarray": lambda d: torch.asarray([1, 2], device=d),
    "scalar_tensor": lambda d: torch.scalar_tensor(2.0, device=d),
    "new_zeros": lambda d: torch.ones(2, device=d).new_zeros(3),
    "new_tensor": lambda d: torch.ones(2, device=d).new_tensor([1.0, 2.0]),
    "new_tensor elsewhere": lambda d: torch.ones(2).new_tensor([1.0, 2.0], device=d),
    "new_full": lambda d: torch.ones(2, device=d).new_full((2,), 7.0),
    "zeros_like": lambda d: torch.zeros_like(torch.ones(2, device=d)),
    "rand_like": lambda d: torch.rand_like(torch.ones(2, device=d)),
    "ones_like elsewhere": lambda d: torch.ones_like(torch.ones(2), device=d),
    "to": lambda d: torch.ones(2).to(d),
    "to with dtype": lambda d: torch.ones(2).to(d, torch.float16),
    "to by keyword": lambda d: torch.ones(2).to(device=d, dtype=torch.int32),
    "to another tensor's": lambda d: torch.ones(2).to(torch.ones(1, device=d)),
    "to copy": lambda d: torch.ones(2, device=d).to(d, copy=True),
    "view": lambda d: torch.ones(4, device=d).view(2, 2)[1],
    "transpose": lambda d: torch.ones(4, 2, device=d).T,
    "contiguous": lambda d: torch.ones(4, 2, device=d).T.contiguous(),
    "clone": lambda d: torch.ones(4, device=d).clone(),
    "detach": lambda d: torch.ones(4, device=d, requires_grad=True).detach(),
    "data": lambda d: torch.ones(4, device=d, requires_grad=True).data,
    "arithmetic": lambda d: torch.ones(4, device=d) * 2 + 1,
    "with a number on the CPU": lambda d: torch.ones(4, device=d) * torch.tensor(2.0),
    "in place": lambda d: torch.ones(4, device=d).add_(1).mul_(2),
    "comparison": lambda d: torch.ones(4, device=d) > 0,
    "index": lambda d: torch.ones(4, device=d)[torch.tensor([0, 2])],
    "mask": lambda d: torch.ones(4, device=d)[torch.ones(4, device=d) > 0],
    "where": lambda d: torch.where(torch.ones(2, device=d) > 0, 1.0, 0.0),
    "cat": lambda d: torch.cat([torch.ones(2, device=d), torch.zeros(1, device=d)]),
    "one_hot": lambda d: torch.nn.functional.one_hot(torch.tensor([0, 2], device=d)),
    "tril": lambda d: torch.ones(3, 3, device=d).tril(),
    "matmul": lambda d: torch.ones(2, 3, device=d) @ torch.ones(3, 2, device=d),
    "einsum": lambda d: torch.einsum("ij,jk->ik", torch.eye(2, device=d), torch.eye(2, device=d)),
    "max values": lambda d: torch.randn(3, 3, device=d).max(dim=1).values,
    "topk": lambda d: torch.randn(5, device=d).topk(2).indices,
    "chunk": lambda d: torch.ones(4, device=d).chunk(2)[1],
    "split": lambda d: torch.ones(4, device=d).split(3)[1],
    "cartesian": lambda d: torch.cartesian_prod(torch.ones(2, device=d), torch.ones(2, device=d)),
    "meshgrid": lambda d: torch.meshgrid(torch.ones(2, device=d), indexing="ij")[0],
    "bincount": lambda d: torch.bincount(torch.tensor([1, 1], device=d)),
    "nonzero": lambda d: torch.ones(3, device=d).nonzero(),
    "dtype change": lambda d: torch.ones(3, device=d).half(),
    "long": lambda d: torch.ones(3, device=d).long(),
    "type": lambda d: torch.ones(3, device=d).type(torch.int32),
    "repeat_interleave": lambda d: torch.ones(2, device=d).repeat_interleave(2),
    "pad": lambda d: torch.nn.functional.pad(torch.ones(2, device=d), (1, 1)),
    "interpolate": lambda d: torch.nn.functional.interpolate(torch.ones(1, 1, 2, 2, device=d), 4),
    "deepcopy": lambda d: copy.deepcopy(torch.ones(3, device=d)),
    "copy": lambda d: copy.copy(torch.ones(3, device=d)),
    "pickle": lambda d: pickle.loads(pickle.dumps(torch.ones(3, device=d))),
    "sparse": lambda d: torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,), device=d),
    "to_dense": lambda d: torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,), device=d).to_dense(),
    "sparse of its parts": lambda d: torch.sparse_coo_tensor(
        torch.tensor([[0, 1]], device=d), torch.tensor([1.0, 2.0], device=d), (2,)
    ),
    "complex": lambda d: torch.ones(2, device=d, dtype=torch.complex64),
    "real of complex": lambda d: torch.ones(2, device=d, dtype=torch.complex64).real,
    "nested zip": lambda d: torch.stack([torch.tensor(1.0, device=d), torch.tensor(2.0, device=d)]),
}


SPARSE = pytest.mark.from_torch("2.9", "MPS has sparse tensors")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=SPARSE if "sparse" in str(make.__code__.co_names) else ())
        for name, make in CONSTRUCTORS.items()
    ],
)
@pytest.mark.parametrize("device", ["mps", "mps:0", torch.device("mps"), MPS], ids=repr)
def test_made_on_the_mac_and_with_the_cpu_s_numbers(make, device):
    torch.manual_seed(1)
    made = make(device)
    torch.manual_seed(1)
    plain = make("cpu")
    assert made.device == MPS
    assert made.is_mps
    assert not made.is_cpu
    assert made.get_device() == 0
    assert plain.device.type == "cpu"
    assert plain.get_device() == -1
    assert made.dtype == plain.dtype
    if "empty" not in str(make.__code__.co_names):
        assert torch.equal(made.cpu().to_dense(), plain.to_dense())


STAYS = {
    "zeros": lambda x: torch.zeros(2),
    "tensor": lambda x: torch.tensor([1.0]),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "to another's": lambda x: x.to(torch.ones(1)),
    "new_zeros elsewhere": lambda x: x.new_zeros(2, device="cpu"),
    "ones_like elsewhere": lambda x: torch.ones_like(x, device="cpu"),
    "copied into": lambda x: torch.zeros(4).copy_(x),
    "type by name": lambda x: x.type("torch.FloatTensor"),
    "sum on the CPU": lambda x: torch.ones(3).sum(),
    "from tolist": lambda x: torch.tensor(x.tolist()),
    "from_numpy": lambda x: torch.from_numpy(np.ones(2)),
    "F on the CPU": lambda x: torch.nn.functional.one_hot(torch.tensor([1, 2])),
}


@pytest.mark.parametrize("make", STAYS.values(), ids=STAYS.keys())
def test_made_on_the_cpu_stays_there(make):
    made = make(torch.ones(4, device="mps"))
    assert made.device == torch.device("cpu")
    assert made.is_cpu
    assert not made.is_mps


def test_type_says_what_a_mac_says():
    assert torch.ones(1, device="mps").type() == "torch.mps.FloatTensor"
    assert torch.ones(1, device="mps", dtype=torch.int64).type() == "torch.mps.LongTensor"
    assert torch.ones(1).type() == "torch.FloatTensor"
    assert torch.ones(3).type("torch.mps.HalfTensor").is_mps
    assert torch.ones(3).type("torch.mps.HalfTensor").dtype is torch.float16


def test_repr_names_the_device():
    assert repr(torch.ones(2, device="mps")) == "tensor([1., 1.], device='mps:0')"
    assert repr(torch.ones(2)) == "tensor([1., 1.])"


def test_numpy_is_refused_in_torch_s_words():
    x = torch.ones(2, device="mps")
    text = (
        "can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
        "host memory first."
    )
    for convert in (lambda: x.numpy(), lambda: np.asarray(x)):
        with pytest.raises(TypeError) as refused:
            convert()
        assert str(refused.value) == text
    assert x.cpu().numpy().tolist() == [1.0, 1.0]
    assert x.tolist() == [1.0, 1.0]
    assert x[0].item() == 1.0


def test_default_device_and_device_context():
    with torch.device("mps"):
        assert torch.ones(1).is_mps
        assert torch.tensor([1.0]).is_mps
        assert torch.as_tensor([1]).is_mps
        assert torch.nn.Linear(2, 2).weight.is_mps
        assert torch.ones(1, device="cpu").is_cpu
    assert torch.ones(1).is_cpu
    torch.set_default_device("mps")
    try:
        assert torch.tensor([[1.0]]).is_mps
        assert torch.get_default_device() == MPS
    finally:
        torch.set_default_device(None)
    assert torch.tensor([1.0]).is_cpu


def test_modules_move_with_parameters_buffers_and_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model(torch.ones(4, 2)).sum().backward()
    weight = model[0].weight
    model.to("mps")
    assert model[0].weight is weight
    assert {t.device for t in model.state_dict().values()} == {MPS}
    assert {p.grad.device for p in model.parameters()} == {MPS}
    model.half()
    assert model[0].weight.dtype is torch.float16
    assert model[0].weight.is_mps
    model.cpu()
    assert {t.device.type for t in model.state_dict().values()} == {"cpu"}


def test_copies_between_devices_do_not_share():
    x = torch.ones(2)
    y = x.to("mps")
    y.add_(1)
    assert x.tolist() == [1.0, 1.0]
    assert y.to("mps") is y
    assert y.cpu().tolist() == [2.0, 2.0]


def test_views_share_and_storage_says_so():
    x = torch.zeros(4, device="mps")
    x[1:3] = 5
    assert x.tolist() == [0.0, 5.0, 5.0, 0.0]
    assert x.untyped_storage().device == MPS
    assert x[1:].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_swapped_data_and_set():
    p = torch.nn.Parameter(torch.ones(2))
    p.data = p.data.to("mps")
    assert p.is_mps
    assert p.device == MPS


def test_subclass_of_tensor():
    class Named(torch.Tensor):
        pass

    x = torch.ones(2, device="mps").as_subclass(Named)
    assert (x + 1).device == MPS
    assert type(x + 1) is Named


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
# torch 2.15's own forward-mode derivatives still use torch.jit.script.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
def test_func_transforms():
    x = torch.arange(3.0, device="mps")
    assert torch.func.grad(lambda t: (t**2).sum())(x).tolist() == [0.0, 2.0, 4.0]
    assert torch.func.vmap(lambda t: t * 2)(x).tolist() == [0.0, 2.0, 4.0]
    hessian = torch.func.hessian(lambda t: (t**3).sum())(x)
    assert hessian.is_mps
    assert hessian.diagonal().tolist() == [0.0, 6.0, 12.0]


def test_meta_tensors_pass_by():
    x = torch.ones(2, device="meta")
    assert x.device.type == "meta"
    assert torch.empty_like(x, device="mps").is_mps
    with pytest.raises(NotImplementedError, match="meta tensor"):
        x.to("mps")
    assert torch.ones(2, device="mps").to("meta").device.type == "meta"


def test_inference_mode_and_no_grad():
    with torch.inference_mode():
        assert (torch.ones(2, device="mps") + 1).is_mps
        assert torch.ones(2).to("mps").is_mps
    with torch.no_grad():
        assert torch.nn.Linear(2, 2, device="mps")(torch.ones(1, 2, device="mps")).is_mps


def test_more_than_sixteen_dimensions():
    with pytest.raises(
        RuntimeError, match="MPS supports tensors with dimensions <= 16, but got 17"
    ):
        torch.ones([1] * 17, device="mps")


def test_events_streams_and_accelerator():
    start, end = torch.mps.Event(enable_timing=True), torch.mps.Event(enable_timing=True)
    start.record()
    end.record()
    end.synchronize()
    assert end.query()
    assert start.elapsed_time(end) >= 0
    torch.mps.synchronize()
    event = torch.Event(device="mps", enable_timing=True)
    event.record()
    assert isinstance(event, torch.Event)
    assert torch.Stream(device="mps").device == MPS
    assert torch.accelerator.is_available()
    assert torch.accelerator.device_count() == 1
    assert torch.accelerator.current_device_index() == 0
    torch.accelerator.synchronize()
    torch.accelerator.current_stream().synchronize()
    assert torch.get_device_module("mps") is torch.mps


@pytest.mark.needs_torch("mps.get_name")
def test_names_of_the_machine():
    assert torch.backends.mps.get_name() == "Apple M1"
    assert torch.backends.mps.get_core_count() == 8


@pytest.mark.needs_torch("mps.knows_macos_26")
def test_versions_of_the_machine():
    assert torch.backends.mps.is_macos_or_newer(15, 0)
    assert not torch.backends.mps.is_macos_or_newer(26, 0)
    with pytest.warns(UserWarning, match="Checking for unexpected MacOS 99.0 returning false"):
        assert not torch.backends.mps.is_macos_or_newer(99, 0)


INTEGERS = {
    "device": lambda: torch.device(0),
    "factory": lambda: torch.zeros(2, device=0).device,
    "constructor": lambda: torch.tensor([1.0], device=0).device,
    "tensor": lambda: torch.zeros(2).to(0).device,
    "tensor and dtype": lambda: torch.zeros(2).to(0, torch.float16).device,
    "tensor by name": lambda: torch.zeros(2).to(device=0, non_blocking=True).device,
    "module": lambda: torch.nn.Linear(2, 2).to(0).weight.device,
    "module by name": lambda: torch.nn.Linear(2, 2).to(device=0).weight.device,
    "new module": lambda: torch.nn.Linear(2, 2, device=0).weight.device,
    "generator": lambda: torch.Generator(0).device,
    "stream": lambda: torch.Stream(0).device,
    "new": lambda: torch.zeros(2).new_ones(2, device=0).device,
    "like": lambda: torch.rand_like(torch.zeros(2), device=0).device,
}


@pytest.mark.parametrize("device", INTEGERS.values(), ids=INTEGERS.keys())
def test_an_integer_is_the_accelerator_s_index(device):
    assert device() == MPS


def test_an_integer_as_default_device_or_context():
    with torch.device(0):
        assert torch.zeros(2).device == MPS
    torch.set_default_device(0)
    try:
        assert torch.tensor([1.0]).device == MPS
    finally:
        torch.set_default_device(None)


def test_a_wrong_integer():
    with pytest.raises(RuntimeError, match="negative"):
        torch.zeros(2, device=-1)
    assert torch.zeros(2, device="cpu").to(dtype=torch.int64).sum().item() == 0


@pytest.mark.parametrize("device", ["cpu", "mps"])
@pytest.mark.parametrize("before", ["cpu", "mps"])
def test_lazy_modules_move(before, device):
    model = torch.nn.Sequential(torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(4))
    model = model.to(before).to(device).to(torch.float16)
    x = torch.ones(2, 3, device=device, dtype=torch.float16)
    assert model(x).device.type == device
    assert {p.device.type for p in model.state_dict().values()} == {device}
    assert model[1].weight.dtype is torch.float16


class Named(torch.Tensor):
    pass


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_subclass_stays_one_when_it_moves(device):
    named = torch.ones(2).as_subclass(Named).requires_grad_()
    moved = named.to(device)
    assert type(moved) is Named
    assert moved.device.type == device
    assert type(moved.cpu()) is Named
    moved.sum().backward()
    assert named.grad.is_cpu
    assert type(torch.nn.Parameter(torch.ones(2)).to(device).detach()) is torch.Tensor


def test_data_that_are_on_the_mac_already():
    data = torch.ones(2, device="mps")
    copy = data.new_tensor(data, requires_grad=True)
    assert copy.is_mps
    assert copy.requires_grad
    assert copy.data_ptr() != data.data_ptr()
    assert torch.as_tensor(data).data_ptr() == data.data_ptr()
    assert torch.asarray(data, copy=True).data_ptr() != data.data_ptr()
    assert torch.as_tensor(data, dtype=torch.float16).dtype is torch.float16
    assert torch.tensor([1.0], device="mps", requires_grad=True).requires_grad
    assert torch.device(0) == MPS


def test_a_storage_moves_between_the_two():
    here, there = torch.ones(2).untyped_storage(), torch.ones(2, device="mps").untyped_storage()
    assert there.mps() is there
    assert here.clone().device.type == there.to(device="cpu").device.type == "cpu"
    for moved in (here.mps(), here.to(device="mps"), there.clone()):
        assert moved.device == MPS
        assert moved.tolist() == here.tolist()


def test_only_a_tensor_of_the_cpu_can_be_pinned():
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        torch.ones(2, device="mps").pin_memory()


def test_a_subclass_without_torch_function_moves_as_a_plain_tensor():
    class Bare(torch.Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

    x = torch.ones(2).as_subclass(Bare)
    assert type(x.to(torch.float64)) is torch.Tensor
    assert type(x.to("mps")) is torch.Tensor
    assert x.to("mps").is_mps


@pytest.mark.parametrize("what", ["inputs", "weights"])
def test_linear_of_integers(what):
    given = {"inputs": torch.ones(2, 2, device="mps"), "weights": torch.ones(2, 2, device="mps")}
    given[what] = given[what].int()
    with pytest.raises(RuntimeError, match=f"does not support linear for non-float {what}"):
        torch.nn.functional.linear(*given.values())
