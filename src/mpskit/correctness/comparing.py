"""How far a result may be off: by its dtype, the terms it sums and the CPU's own error."""

from __future__ import annotations

import math
from typing import Any

import torch

from mpskit._base.data import read_toml
from mpskit.dispatch.nested import tensors_of

__all__ = ["Deviation", "allowed_error", "compare", "exact_copy", "map_args"]

_PRODUCTS = {"mm": 0, "bmm": 0, "linear": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}
_CONVOLUTIONS = ("convolution", "convolution_overrideable", "_mps_convolution")
_TF32 = (*_CONVOLUTIONS, "cudnn_convolution", "convolution_backward")
# Where values cancel, what is left of them is as inexact as they were.
_CANCELLING = frozenset(
    [
        "add",
        "add_",
        "sub",
        "sub_",
        "rsub",
        "sum",
        "mean",
        "var",
        "std",
        "native_layer_norm",
        "native_layer_norm_backward",
        "native_group_norm",
        "native_group_norm_backward",
        "native_batch_norm",
        "native_batch_norm_backward",
        "_softmax_backward_data",
        "_log_softmax_backward_data",
        "cumsum",
        "baddbmm",
        "addmm",
    ]
)


class Deviation:
    """One result: the error of the device, of the CPU in the same dtype, and what is allowed.

    Attributes:
        error: the device's largest error, relative to the largest value; inf where a value is not
            finite and the CPU's is, or where the shapes differ.
        cpu_error: the CPU's in the same dtype.
        allowed: what the error may be.
    """

    __slots__ = ("allowed", "cpu_error", "error")

    def __init__(self, error: float, cpu_error: float, allowed: float) -> None:
        self.error, self.cpu_error, self.allowed = error, cpu_error, allowed

    @property
    def wrong(self) -> bool:
        """Return whether rounding cannot explain the error."""
        return self.error > self.allowed


def compare(
    got: torch.Tensor,
    same: torch.Tensor,
    exact: torch.Tensor,
    *,
    rounding: float,
    scale: float = 0.0,
) -> Deviation:
    """Compare a device's result with the CPU's in the same dtype and in float64; all on the CPU.

    Args:
        got: the device's.
        same: the CPU's in the same dtype.
        exact: the CPU's in float64.
        rounding: the relative error that is allowed in any case.
        scale: the least that errors are relative to; the largest exact value if that is more.
    """
    if got.shape != same.shape:
        return Deviation(math.inf, 0.0, rounding)
    if not (got.is_floating_point() or got.is_complex()):
        return Deviation(math.inf if not torch.equal(got, same) else 0.0, 0.0, 0.0)
    if got.numel() == 0:
        return Deviation(0.0, 0.0, rounding)
    if exact.shape != same.shape:
        exact = same
    if not torch.equal(got.isfinite() | ~same.isfinite(), torch.ones_like(got, dtype=torch.bool)):
        return Deviation(math.inf, 0.0, rounding)
    finite = got.isfinite() & same.isfinite() & exact.isfinite()
    if not finite.any():
        return Deviation(0.0, 0.0, rounding)
    wide = torch.complex128 if got.is_complex() else torch.float64
    device, cpu, right = (t[finite].to(wide) for t in (got, same, exact))
    largest = max(right.abs().max().item(), scale, torch.finfo(got.dtype).tiny)
    error, own = ((t - right).abs().max().item() / largest for t in (device, cpu))
    return Deviation(error, own, max(rounding, _figures()["of_cpu"] * own))


def allowed_error(op: str, args: Any, result: torch.Tensor, device: str) -> float:
    """Return the relative error that one operator may have on exact inputs."""
    figures = _figures()
    name = str(result.dtype).removeprefix("torch.")
    roundings: float = figures["roundings"].get(name, 4)
    if device == "cuda" and name == "float32" and op in _TF32:
        roundings = figures["tf32_roundings"]
    wide = "float64" if name in ("float64", "complex128") else "float32"
    one = torch.finfo(result.dtype).eps / 2 if result.dtype.is_floating_point else 2**-24
    summed = torch.finfo(getattr(torch, wide)).eps / 2
    accumulated: float = figures["accumulated"]
    return roundings * one + accumulated * summed * math.sqrt(_terms(op, args, result))


def least_scale(op: str, args: Any) -> float:
    """Return the least value that an operator's errors are relative to: where values cancel."""
    if op not in _CANCELLING:
        return 0.0
    floats = [t for t in tensors_of(args) if t.is_floating_point() and t.numel()]
    largest = max(
        (t[t.isfinite()].abs().max().item() for t in floats if t.isfinite().any()), default=0.0
    )
    return 0.01 * largest


def _terms(op: str, args: Any, result: torch.Tensor) -> int:
    """Return how many products or values one element of the result is the sum of."""
    tensors = list(tensors_of(args))
    at = _PRODUCTS.get(op)
    if at is not None and len(tensors) > at:
        return int(tensors[at].shape[-1])
    if op in _CONVOLUTIONS and len(tensors) > 1:
        return max(1, tensors[1].numel() // max(1, tensors[1].shape[0]))
    return max([1, *(t.numel() // max(1, result.numel()) for t in tensors)])


def _figures() -> dict[str, Any]:
    found: dict[str, Any] = read_toml("tolerances.toml")["operator"]
    return found


def exact_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU with the same values and strides.

    What lies between its elements is copied too, in one flat piece, so that no kernel for strided
    copies takes part: these may be what is wrong.
    """
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return tensor.cpu().clone()
    sizes, strides = tensor.shape, tensor.stride()
    reach = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if tensor.numel() == 0 or reach > 4 * tensor.numel() + 1024:
        return tensor.cpu().clone()
    flat = tensor.as_strided((reach,), (1,), tensor.storage_offset())
    flat = flat.cpu() if flat.device.type != "cpu" else flat.clone()
    return flat.as_strided(sizes, strides)


def map_args(value: Any, change: Any) -> Any:
    """Return an operator's arguments with every tensor changed; lists and tuples are walked."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(map_args(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_args(item, change) for key, item in value.items()}
    return value
