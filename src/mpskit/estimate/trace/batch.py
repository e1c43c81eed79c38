"""Builds the batch that a traced step gets."""

from __future__ import annotations

import math
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import dataless_tensor
from mpskit.errors import EstimateError
from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.trace.storage_log import StorageLog

__all__ = ["build_batch", "keeps_values"]

# Numbers up to this many keep their values: integers steer a step (masks, lengths, edges), and
# so do a few floats; the pixels of an image do not.
_KEPT_INTEGERS = 1 << 22
_KEPT_FLOATS = 1 << 10


def build_batch(batch: Any, log: StorageLog, dtype: torch.dtype | None) -> Any:
    """Return the batch as the step's own: integers with their values, floats without memory.

    Args:
        batch: tensors or ``TensorSpec``, nested; left as it is.
        log: where the batch is recorded.
        dtype: what floating-point tensors become; None leaves them.
    """

    def build(item: Any) -> torch.Tensor:
        tensor = _from_spec(item, dtype) if isinstance(item, TensorSpec) else _twin(item, dtype)
        log.add(tensor.untyped_storage(), "batch")
        return tensor

    return map_tensors(batch, build)


def _from_spec(spec: TensorSpec, dtype: torch.dtype | None) -> torch.Tensor:
    wanted = spec.torch_dtype()
    if wanted.is_floating_point or wanted.is_complex or math.prod(spec.shape) > _KEPT_INTEGERS:
        return _contiguous(spec.shape, dtype if dtype and wanted.is_floating_point else wanted)
    return torch.full(spec.shape, spec.fill, dtype=wanted, device="cpu")


def _twin(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if tensor.layout is not torch.strided:
        raise EstimateError(
            f"a tensor of the batch is sparse ({tensor.layout}), which cannot be traced: give "
            "a dense one, or a step= that makes it sparse",
            given=tensor.layout,
        )
    wanted = dtype if dtype and tensor.is_floating_point() else tensor.dtype
    if tensor.device.type == "meta" or not keeps_values(tensor.dtype, tensor.numel()):
        return _contiguous(tensor.shape, wanted)
    return tensor.detach().to("cpu", wanted, copy=True)


def keeps_values(dtype: torch.dtype, count: int) -> bool:
    """Return whether so many numbers of a tensor of the batch have values in the trace."""
    floats = dtype.is_floating_point or dtype.is_complex
    return count <= (_KEPT_FLOATS if floats else _KEPT_INTEGERS)


def _contiguous(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    stride = torch.empty(shape, dtype=dtype, device="meta").stride()
    return dataless_tensor(shape, stride, dtype, math.prod(shape) * dtype.itemsize)
