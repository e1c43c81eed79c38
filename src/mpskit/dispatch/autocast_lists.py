"""What ``torch.autocast("mps")`` does to the arguments of a torch function.

Source: the AutocastMPS registrations of aten/src/ATen/autocast_mode.cpp, read from the source and
from the initialisers in the macOS wheels 2.5.1 to 2.15.0. The list is neither the CPU's nor
CUDA's: softmax, norms and sums go to float32, and ``cat`` and ``stack`` are not in it.

The registrations are by operator; a function mode sees Python functions. So three kinds of names
are listed: the operators, the special methods that lead to them (``x @ y`` is ``__matmul__``), and
the functions whose C++ body calls exactly such an operator first (``cross_entropy`` calls
``log_softmax``), where casting its own arguments has the same effect.
"""

from __future__ import annotations

import functools
from typing import Literal

from mpskit.backends.versions import has, torch_version

__all__ = ["Policy", "cast_policy"]

Policy = Literal["lower", "fp32", "promote"]

_LOWER = """
    _convolution conv1d conv2d conv_tbc conv_transpose1d conv_transpose2d convolution
    _mps_convolution prelu addmm addmv addr matmul einsum mm mv linear addbmm baddbmm bmm
    chain_matmul linalg_multi_dot lstm_cell
"""
_LOWER_CALLERS = "__matmul__ __rmatmul__ multi_dot"

_FP32 = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus
    layer_norm native_layer_norm group_norm frobenius_norm nuclear_norm batch_norm
    cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d
    hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
    multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
    binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp prod softmax log_softmax
    cumprod cumsum linalg_vector_norm linalg_matrix_norm sum
"""
_FP32_CALLERS = """
    __pow__ __rpow__ __rdiv__ __rtruediv__ arccos arcsin special_expm1 special_log1p
    special_softmax special_log_softmax special_logsumexp softmin cross_entropy
    cross_entropy_loss nll_loss_nd norm linalg_norm vector_norm matrix_norm instance_norm
"""

_PROMOTE = """
    addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put tensordot scatter_add
"""
_PROMOTE_CALLERS = "arctan2 grid_sample"

# feature of mpskit.backends.versions -> the operators that came with it
_LATER = {
    "mps.autocast.attention": "scaled_dot_product_attention",
    "mps.autocast.conv3d": "conv3d conv_transpose3d",
}


def cast_policy(func: object, version: str | None = None) -> Policy | None:
    """Return what autocast does to the floating-point mps tensors among a call's arguments.

    Args:
        func: the callable that a torch function mode receives, or its name.
        version: torch's version; by default the installed one's.

    Returns:
        ``"lower"`` (to autocast's own dtype), ``"fp32"`` (to float32), ``"promote"`` (to the
        widest dtype among them), or None where autocast leaves the call alone.
    """
    name = func if isinstance(func, str) else str(getattr(func, "__name__", ""))
    return _policies(version or torch_version() or "").get(name)


@functools.cache
def _policies(version: str) -> dict[str, Policy]:
    later = " ".join(names for feature, names in _LATER.items() if has(feature, version))
    table: dict[str, Policy] = {}
    table |= dict.fromkeys(f"{_LOWER} {_LOWER_CALLERS} {later}".split(), "lower")
    table |= dict.fromkeys(f"{_FP32} {_FP32_CALLERS}".split(), "fp32")
    table |= dict.fromkeys(f"{_PROMOTE} {_PROMOTE_CALLERS}".split(), "promote")
    return table
