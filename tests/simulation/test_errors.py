import warnings

import pytest
import torch

from mpskit.simulation import simulate


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb", fallback=False) as machine:
        yield machine


TWO = (
    "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!"
)
PLACEHOLDER = "Placeholder storage has not been allocated on MPS device!"

MIXES = {
    "add": (lambda x, y: x + y, TWO),
    "add, CPU first": (lambda x, y: y + x, TWO),
    "mul in place": (lambda x, y: x.mul_(y), TWO),
    "where": (lambda x, y: torch.where(x > 0, x, y), TWO),
    "cat": (lambda x, y: torch.cat([x, y]), TWO),
    "mm": (
        lambda x, y: x @ y,
        (
            "Tensor for argument #2 'mat2' is on CPU, but expected it to be on GPU (while checking "
            "arguments for mm)"
        ),
    ),
    "linear, weight": (
        lambda x, y: torch.nn.functional.linear(x, y),
        "Tensor for argument weight is on cpu but expected on mps",
    ),
    "linear, input": (
        lambda x, y: torch.nn.functional.linear(y, x),
        "Tensor for argument input is on cpu but expected on mps",
    ),
    "linear, bias": (
        lambda x, y: torch.nn.functional.linear(x, x, y),
        "Tensor for argument bias is on cpu but expected on mps",
    ),
    "embedding": (
        lambda x, y: torch.nn.functional.embedding(torch.tensor([0, 1]), x),
        PLACEHOLDER,
    ),
    "conv": (
        lambda x, y: torch.nn.functional.conv1d(y[None], x[None]),
        (
            "slow_conv2d_forward_mps: input(device='cpu') and weight(device=mps:0')  must be on "
            "the same device"
        ),
    ),
    "conv2d module": (
        lambda x, y: torch.nn.Conv2d(1, 1, 1).to("mps")(y[None, None]),
        (
            "slow_conv2d_forward_mps: input(device='cpu') and weight(device=mps:0')  must be on "
            "the same device"
        ),
    ),
    "conv, bias": (
        lambda x, y: torch.nn.functional.conv1d(x[None], x[..., None], y[0]),
        "Input type (MPSFloatType) and bias type (torch.FloatTensor) should be the same",
    ),
    "dot": (
        lambda x, y: torch.dot(x[0], y[0]),
        "Expected all tensors to be on the same device. Found: mps:0, cpu",
    ),
    "dot, the other way": (
        lambda x, y: torch.dot(y[0], x[0]),
        "Expected all tensors to be on the same device. Found: cpu, mps:0",
    ),
    "masked_scatter": (lambda x, y: x.masked_scatter(x > 0, y), TWO),
    "index_put": (lambda x, y: x.index_put((torch.tensor([0]),), y[:1]), TWO),
    "conv, weight": (
        lambda x, y: torch.nn.functional.conv1d(x[None], y[None]),
        "Input type (MPSFloatType) and weight type (torch.FloatTensor) should be the same",
    ),
    "layer_norm": (lambda x, y: torch.nn.functional.layer_norm(x, (2,), y[0]), PLACEHOLDER),
    "index_select": (lambda x, y: x.index_select(0, torch.tensor([0])), PLACEHOLDER),
    "masked_fill": (
        lambda x, y: x.masked_fill(y > 0, 1.0),
        "expected self and mask to be on the same device, but got mask on cpu and self on mps:0",
    ),
    "cross_entropy": (
        lambda x, y: torch.nn.functional.cross_entropy(x, torch.tensor([0, 1])),
        TWO,
    ),
}


@pytest.mark.parametrize(("mix", "text"), MIXES.values(), ids=MIXES.keys())
def test_mixing_devices(mix, text):
    with pytest.raises(RuntimeError) as refused:
        mix(torch.ones(2, 2, device="mps"), torch.ones(2, 2))
    assert str(refused.value) == text


LEGAL = {
    "a number on the CPU": lambda x: x + torch.tensor(1.0),
    "an index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "two indices on the CPU": lambda x: x[torch.tensor([0]), torch.tensor([1])],
    "a mask on the CPU": lambda x: x[torch.tensor([True, False])],
    "copy_": lambda x: x.copy_(torch.zeros(2, 2)),
    "assignment": lambda x: x.__setitem__(0, torch.zeros(2)),
    "assignment at an index": lambda x: x.__setitem__(torch.tensor([0]), 3.0),
    "assignment at a mask": lambda x: x.__setitem__(torch.tensor([True, False]), 3.0),
    "packing": lambda x: torch.nn.utils.rnn.pack_padded_sequence(
        x[..., None], torch.tensor([2, 1])
    ),
    "clip_grad": lambda x: torch.nn.utils.clip_grad_norm_([x], 1.0),
    "full of a CPU number": lambda x: torch.full_like(x, torch.tensor(2.0).item()),
    "where with a number": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
    "tensor_split at CPU indices": lambda x: x.tensor_split(torch.tensor([1])),
}


@pytest.mark.parametrize("mix", LEGAL.values(), ids=LEGAL.keys())
def test_legal_mixes(mix):
    x, y = torch.ones(2, 2, device="mps"), torch.ones(2, 2)
    assert _numbers((mix(x), x)) == _numbers((mix(y), y))


def _numbers(value):
    """Return the numbers of a tensor, or of all of a tuple."""
    if isinstance(value, tuple):
        return [_numbers(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
CREATES_FLOAT64 = {
    "zeros": lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
    "to double": lambda: torch.ones(2, device="mps").double(),
    "to dtype": lambda: torch.ones(2, device="mps").to(torch.float64),
    "of an mps tensor, both": lambda: torch.ones(2, device="mps").to("mps", torch.float64),
    "sum in double": lambda: torch.ones(2, device="mps").sum(dtype=torch.float64),
    "random": lambda: torch.randn(2, dtype=torch.float64, device="mps"),
    "module": lambda: torch.nn.Linear(2, 2).to("mps").double(),
    "as another type": lambda: torch.ones(2, device="mps").type(torch.float64),
}


@pytest.mark.parametrize("make", CREATES_FLOAT64.values(), ids=CREATES_FLOAT64.keys())
def test_float64_made_on_the_mac(make):
    with pytest.raises(TypeError) as refused:
        make()
    assert str(refused.value) == FLOAT64


MOVES_FLOAT64 = {
    "to": lambda: torch.ones(2, dtype=torch.float64).to("mps"),
    "module": lambda: torch.nn.Linear(2, 2, dtype=torch.float64).to("mps"),
    "numpy": lambda: torch.as_tensor(__import__("numpy").ones(2), device="mps"),
    "tensor": lambda: torch.tensor([1.0], dtype=torch.float64, device="mps"),
}


@pytest.mark.parametrize("move", MOVES_FLOAT64.values(), ids=MOVES_FLOAT64.keys())
def test_float64_moved_to_the_mac(move):
    with pytest.raises(TypeError, match=r"float64.*Please use float32 instead"):
        move()


def test_complex128_is_refused_both_ways():
    with pytest.raises(TypeError, match="ComplexDouble"):
        torch.ones(2, dtype=torch.complex128).to("mps")
    with pytest.raises(TypeError, match="ComplexDouble"):
        torch.ones(2, device="mps", dtype=torch.complex64).to(torch.complex128)


def test_a_double_cast_on_the_way_is_fine():
    assert torch.ones(2, dtype=torch.float64).to("mps", torch.float32).dtype is torch.float32
    assert torch.ones(2, device="mps").to("cpu", torch.float64).dtype is torch.float64


def test_missing_operator_is_torch_s_error(mac):
    x = torch.ones(3, 3, device="mps")
    with pytest.raises(NotImplementedError) as refused:
        torch.linalg.eigvals(x)
    text = str(refused.value)
    assert text.startswith("The operator 'aten::_linalg_eigvals' is not currently implemented")
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in text
    assert mac.fallbacks == ()


def test_wrong_generator():
    with pytest.raises(
        RuntimeError, match="Expected a 'mps' device type for generator but found 'c"
    ):
        torch.randn(2, device="mps", generator=torch.Generator())
    with pytest.raises(
        RuntimeError, match="Expected a 'cpu' device type for generator but found 'm"
    ):
        torch.randn(2, generator=torch.Generator(device="mps"))


@pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="torch on a Mac is built without CUDA; this one is not"
)
def test_pinned_memory():
    with pytest.raises(
        RuntimeError, match='Attempted to set the storage of a tensor on device "cpu'
    ):
        torch.ones(2).pin_memory()
    with pytest.raises(RuntimeError, match=r"cannot pin 'torch.mps.FloatTensor'"):
        torch.ones(2, device="mps").pin_memory()


@pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="torch on a Mac is built without CUDA; this one is not"
)
def test_cuda_is_not_there_either():
    with pytest.raises(AssertionError, match="Torch not compiled with CUDA enabled"):
        torch.ones(2, device="mps").cuda()


class TestFallback:
    @pytest.fixture(autouse=True)
    def mac(self):
        """The class's own machines take its place."""

    def test_runs_on_the_cpu_and_warns_for_the_first(self):
        with simulate("m1-8gb", fallback=True) as mac:
            x = torch.ones(3, 3, device="mps")
            with pytest.warns(UserWarning, match="will fall back to run on the CPU"):
                values = torch.linalg.eigvals(x)
            x.mode()  # warnings are errors here: the second operator says nothing
            assert values.is_mps
            assert mac.fallbacks == ("aten::_linalg_eigvals", "aten::mode")

    def test_variable_is_read_once_on_entry(self, monkeypatch):
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        with simulate("m1-8gb"):
            monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                assert torch.linalg.eigvals(torch.ones(2, 2, device="mps")).is_mps
        with simulate("m1-8gb"), pytest.raises(NotImplementedError):
            torch.linalg.eigvals(torch.ones(2, 2, device="mps"))

    def test_a_word_is_refused(self, monkeypatch):
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "true")
        with pytest.raises(ValueError, match="is not a number: use 1 or 0"), simulate("m1-8gb"):
            pass
        assert not torch.backends.mps.is_available()


CONVOLUTIONS = {
    "slow_conv_dilated2d": lambda x: torch.nn.Conv2d(1, 1, 1, dilation=2).to("mps")(x),
    "slow_conv3d_forward": lambda x: torch.nn.Conv3d(1, 1, 1).to("mps")(x[None]),
    "slow_conv_dilated3d": lambda x: torch.nn.Conv3d(1, 1, 1, dilation=2).to("mps")(x[None]),
    "slow_conv_transpose2d": lambda x: torch.nn.ConvTranspose2d(1, 1, 1).to("mps")(x),
    "slow_conv_transpose3d": lambda x: torch.nn.ConvTranspose3d(1, 1, 1).to("mps")(x[None]),
}


@pytest.mark.parametrize(("kernel", "convolve"), CONVOLUTIONS.items(), ids=CONVOLUTIONS.keys())
def test_other_convolutions_of_a_cpu_image(kernel, convolve):
    with pytest.raises(NotImplementedError, match=f"'aten::{kernel}' is not currently implemented"):
        convolve(torch.ones(1, 1, 4, 4))


def test_a_mask_on_the_cpu_scatters():
    x = torch.zeros(3, device="mps")
    mask = torch.tensor([True, False, True])
    assert x.masked_scatter(mask, torch.ones(2, device="mps")).tolist() == [1.0, 0.0, 1.0]


def test_wrong_arguments_raise_what_the_operator_s_own_check_says():
    x = torch.rand(4, 4, 4, device="mps")
    with pytest.raises(IndexError, match="Dimension out of range"):
        torch.narrow_copy(x, 3, 0, 1)
    with pytest.raises(RuntimeError, match=r"output_size.size\(\) must be 2"):
        torch.nn.functional.adaptive_max_pool2d(x, ())
    assert torch.narrow_copy(x, 0, 1, 2).is_mps


def test_only_an_allocation_without_strides_counts_dimensions():
    many = torch.zeros([1] * 17)
    assert many.to("mps").dim() == 17
    assert torch.tensor(many.tolist(), device="mps").clone().is_mps
    with pytest.raises(RuntimeError, match="dimensions <= 16"):
        torch.empty([1] * 17, device="mps")
