"""The buckets in which ``DistributedDataParallel`` sums gradients: a second copy of all of them.

With ``gradient_as_bucket_view`` the gradients lie in the buckets. Source: ``initialize_buckets``,
``rebuild_buckets`` and ``mark_variable_ready_dense`` in c10d/reducer.cpp, and ``_ddp_init_helper``
in torch/nn/parallel/distributed.py.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol

import torch

from mpskit.dispatch.dataless_tensors import dataless_storage
from mpskit.dispatch.patches import Patches
from mpskit.estimate.trace.storage_log import StorageLog

__all__ = ["DEFAULT_DDP", "Wrapper", "add_buckets"]


class Wrapper(Protocol):
    """What is read of a ``DistributedDataParallel``."""

    bucket_bytes_cap: int
    gradient_as_bucket_view: bool


class _Default(NamedTuple):
    bucket_bytes_cap: int = 25 * 2**20
    gradient_as_bucket_view: bool = False


# A wrapper with torch's defaults, which cannot be made without a process group.
DEFAULT_DDP: Any = _Default()


def add_buckets(
    wrapper: Wrapper, model: torch.nn.Module, log: StorageLog, patches: Patches
) -> None:
    """Record the buckets of a wrapper, for as long as the trace runs.

    Args:
        wrapper: the ``DistributedDataParallel`` that was taken off.
        model: the module inside of it, already exchanged.
        log: where the buckets are recorded, as gradients.
        patches: give the buckets up, and take away the hooks that put gradients into them.
    """
    buckets = _Buckets(wrapper, model, log)
    patches.on_exit(buckets.drop)
    buckets.make()
    if wrapper.gradient_as_bucket_view:
        for parameter in buckets.trained:
            patches.on_exit(parameter.register_post_accumulate_grad_hook(buckets.take).remove)
        patches.on_exit(model.register_forward_pre_hook(buckets.make_again).remove)


class _Buckets:
    def __init__(self, wrapper: Wrapper, model: torch.nn.Module, log: StorageLog) -> None:
        self.log = log
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.largest = int(wrapper.bucket_bytes_cap)
        self.storages: list[torch.UntypedStorage] = []
        self.views: dict[int, torch.Tensor] = {}
        self.used = self.made_again = False

    def drop(self) -> None:
        self.storages.clear()
        self.views.clear()

    def make(self) -> None:
        """Allocate the buckets; gradients that lie in older ones move, bucket by bucket."""
        self.drop()
        core: Any = importlib.import_module("torch._C._distributed_c10d")
        limits = [core._DEFAULT_FIRST_BUCKET_BYTES, self.largest]
        groups, _ = core._compute_bucket_assignment_by_size(self.trained, limits)
        for group in groups:
            members = [self.trained[index] for index in group]
            storage = dataless_storage(sum(p.numel() * p.element_size() for p in members))
            self.log.add(storage, "gradients")
            self.storages.append(storage)
            offset = 0
            for parameter in members:
                empty = torch.empty(0, dtype=parameter.dtype, device="cpu")
                stride = parameter.stride()
                self.views[id(parameter)] = empty.set_(storage, offset, parameter.shape, stride)
                offset += parameter.numel()
                if self.used and parameter.grad is not None:
                    self.take(parameter)

    def make_again(self, *_: Any) -> None:
        """Make the buckets anew once the first backward pass has told the gradients' order."""
        if self.used and not self.made_again and torch.is_grad_enabled():
            self.made_again = True
            self.trained.reverse()  # about the order in which gradients arrive
            self.make()

    def take(self, parameter: torch.Tensor) -> None:
        """Put a gradient that was computed into its bucket."""
        self.used = True
        parameter.grad = self.views[id(parameter)]
