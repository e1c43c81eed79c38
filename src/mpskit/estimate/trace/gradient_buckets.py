"""The buckets in which ``DistributedDataParallel`` sums gradients: a second copy of all of them.

Source: torch/csrc/distributed/c10d/reducer.cpp (``initialize_buckets``, ``mark_variable_ready_dense``)
and ``_ddp_init_helper`` in torch/nn/parallel/distributed.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mpskit.dispatch.dataless_tensors import dataless_storage
from mpskit.dispatch.patches import Patches
from mpskit.estimate.trace.storage_log import StorageLog

__all__ = ["add_buckets"]


def add_buckets(wrapper: Any, model: torch.nn.Module, log: StorageLog, patches: Patches) -> None:
    """Record the buckets of a wrapper, for as long as the trace runs.

    Args:
        wrapper: the ``DistributedDataParallel`` that was taken off.
        model: the module inside of it, already exchanged.
        log: where the buckets are recorded, as gradients.
        patches: hold the buckets, and take away the hooks that put gradients into them
            (``gradient_as_bucket_view``).
    """
    # After the first backward pass the buckets are made again, in the order of the gradients.
    trained = [p for p in reversed(list(model.parameters())) if p.requires_grad]
    core: Any = torch._C._distributed_c10d
    limits = [core._DEFAULT_FIRST_BUCKET_BYTES, int(wrapper.bucket_bytes_cap)]
    groups, _ = core._compute_bucket_assignment_by_size(trained, limits)
    for group in groups:
        members = [trained[index] for index in group]
        storage = dataless_storage(sum(p.numel() * p.element_size() for p in members))
        log.add(storage, "gradients")
        patches.on_exit(storage.nbytes)  # alive until then
        if wrapper.gradient_as_bucket_view:
            _lay_into(storage, members, patches)


def _lay_into(storage: Any, members: list[torch.nn.Parameter], patches: Patches) -> None:
    """Let the gradients of a bucket's parameters be views of it once each has been computed."""
    offset = 0
    for parameter in members:
        empty = torch.empty(0, dtype=parameter.dtype, device="cpu")
        view = empty.set_(storage, offset, parameter.shape, parameter.stride())
        offset += math.prod(parameter.shape)

        def move(moved: torch.Tensor, view: torch.Tensor = view) -> None:
            moved.grad = view

        patches.on_exit(parameter.register_post_accumulate_grad_hook(move).remove)
