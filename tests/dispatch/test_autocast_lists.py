"""The cast table of ``torch.autocast("mps")``."""

import pytest
import torch
from torch.nn import functional

from mpskit.dispatch.autocast_lists import cast_policy


@pytest.mark.parametrize(
    ("func", "policy"),
    [
        (torch.matmul, "lower"),
        (torch.Tensor.__matmul__, "lower"),
        (torch.mm, "lower"),
        (torch.addmm, "lower"),
        (torch.einsum, "lower"),
        (functional.linear, "lower"),
        (functional.conv2d, "lower"),
        (functional.conv_transpose1d, "lower"),
        (torch.prelu, "lower"),
        (functional.scaled_dot_product_attention, "lower"),
        (torch.exp, "fp32"),
        (torch.log, "fp32"),
        (torch.Tensor.__pow__, "fp32"),
        (torch.sum, "fp32"),
        (torch.Tensor.sum, "fp32"),
        (torch.cumsum, "fp32"),
        (functional.softmax, "fp32"),
        (functional.log_softmax, "fp32"),
        (functional.cross_entropy, "fp32"),
        (functional.layer_norm, "fp32"),
        (functional.group_norm, "fp32"),
        (functional.mse_loss, "fp32"),
        (torch.linalg.vector_norm, "fp32"),
        (torch.norm, "fp32"),
        (torch.cdist, "fp32"),
        (torch.addcmul, "promote"),
        (torch.atan2, "promote"),
        (torch.tensordot, "promote"),
        (torch.scatter_add, "promote"),
        # Not in the MPS list, though in the CPU's or CUDA's:
        (torch.cat, None),
        (torch.stack, None),
        (torch.nn.functional.gelu, None),
        (torch.mean, None),
        (torch.add, None),
        (torch.Tensor.exp_, None),
        (torch.Tensor.index_put_, None),
        (functional.binary_cross_entropy, None),
        (functional.embedding, None),
        pytest.param(
            getattr(functional, "rms_norm", None),
            None,
            marks=pytest.mark.skipif(
                not hasattr(functional, "rms_norm"), reason="rms_norm is in torch from 2.4"
            ),
        ),
    ],
)
def test_policy(func, policy):
    assert cast_policy(func, "2.13.0") == policy


@pytest.mark.parametrize(
    ("name", "version", "policy"),
    [
        ("conv3d", "2.8.0", None),
        ("conv3d", "2.9.0", "lower"),
        ("conv_transpose3d", "2.13.0", "lower"),
        ("scaled_dot_product_attention", "2.5.1", None),
        ("scaled_dot_product_attention", "2.6.0", "lower"),
        ("matmul", "2.5.1", "lower"),
        ("no_such_function", "2.13.0", None),
        ("", "2.13.0", None),
    ],
)
def test_what_came_later(name, version, policy):
    assert cast_policy(name, version) == policy


def test_the_installed_torch_is_the_default():
    assert cast_policy("conv3d") == cast_policy("conv3d", torch.__version__)
    assert cast_policy(object()) is None


def test_every_operator_of_the_table_exists():
    from mpskit.dispatch import autocast_lists as rules

    later = " ".join(rules._LATER.values())
    names = f"{rules._LOWER} {rules._FP32} {rules._PROMOTE} {later}".split()
    assert len(names) == len(set(names)) > 80
    assert [name for name in names if not hasattr(torch.ops.aten, name)] == []
