"""Kernels that the CPU has not, or that give other results there."""

import pytest
import torch

from mpskit.simulation import simulate


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb") as machine:
        yield machine


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.int32, torch.int32),
        (torch.int64, torch.int32),
        (torch.bool, torch.int32),
    ],
)
def test_bincount_keeps_the_weights_dtype(dtype, result):
    x = torch.tensor([0, 1, 1], device="mps")
    counts = torch.bincount(x, torch.tensor([1, 1, 1], device="mps").to(dtype), 4)
    assert (counts.dtype, counts.is_mps) == (result, True)
    assert counts.tolist() == [1, 2, 0, 0]
    assert torch.bincount(x).dtype is torch.int64
    with pytest.raises(RuntimeError):
        torch.bincount(x, torch.ones(3))
    assert torch.bincount(torch.tensor([0, 1]), torch.tensor([1, 2])).dtype is torch.float64


def test_renorm_s_gradient():
    x = torch.rand(3, 4, device="mps", requires_grad=True)
    x.renorm(2, 0, 0.5).sum().backward()
    same = x.detach().cpu().requires_grad_()
    same.renorm(2, 0, 0.5).sum().backward()
    assert x.grad.is_mps
    assert torch.allclose(x.grad.cpu(), same.grad)
    with pytest.raises(TypeError, match="float64"):
        torch.linalg.vector_norm(x, dtype=torch.float64)


def _quantised(weights, group):
    """Return 4-bit numbers two to a byte, the even column first, with scales and zero points."""
    rows, columns = weights.shape
    groups = weights.reshape(rows, columns // group, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales = (high - low) / 15
    numbers = ((groups - low) / scales).round().clamp(0, 15).to(torch.uint8).reshape(rows, columns)
    packed = (numbers[:, ::2] << 4) | numbers[:, 1::2]
    zeros = low + scales * 8
    return packed, torch.cat((scales, zeros), -1).transpose(0, 1).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tiles", [2, 4, 8])
def test_four_bit_weights_multiply(dtype, tiles):
    torch.manual_seed(0)
    weights, x = torch.randn(48, 128), torch.randn(5, 128)
    packed, scales = _quantised(weights, 64)
    on_mac = torch._convert_weight_to_int4pack(packed.to("mps"), tiles)
    assert on_mac.shape == (6, 128 // (16 * tiles), 32, tiles // 2)
    product = torch._weight_int4pack_mm(x.to("mps", dtype), on_mac, 64, scales.to("mps", dtype))
    assert product.is_mps
    assert product.dtype is dtype
    error = (product.cpu().float() - x @ weights.t()).abs().mean() / (x @ weights.t()).abs().mean()
    assert error < 0.12


def test_wrong_four_bit_weights():
    with pytest.raises(RuntimeError, match="innerKTiles need to be 2, 4, or 8, got 3"):
        torch._convert_weight_to_int4pack(torch.zeros(8, 16, dtype=torch.uint8, device="mps"), 3)
    packed = torch.zeros(1, 1, 32, 1, dtype=torch.int32, device="mps")
    with pytest.raises(RuntimeError, match="expect qGroupSize to be 32, 64, 128 or 256, got 7"):
        torch._weight_int4pack_mm(
            torch.zeros(1, 32, device="mps"), packed, 7, torch.zeros(1, 8, 2, device="mps")
        )
