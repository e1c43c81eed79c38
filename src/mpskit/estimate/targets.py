"""What the target device does differently from the CPU that a step is traced on."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mpskit.dispatch.mps_op_memory import PathCharge, mps_charge
from mpskit.errors import ArgumentError
from mpskit.estimate.trace.tracer import Charge
from mpskit.estimate.trace.workspace import cpu_charges

__all__ = ["DEVICES", "Target", "target_for"]

DEVICES = ("cpu", "mps", "cuda")

_MPS_PATHS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "mkldnn_rnn_layer",
)


@dataclass(frozen=True)
class Target:
    """A device whose memory is asked for.

    Attributes:
        device: ``cpu``, ``mps`` or ``cuda``.
        charges: operators whose memory there is not what their results show.
        foreach_optimizers: whether optimizers go through all parameters at once by default
            (``torch.utils._foreach_utils``: on CUDA, not on MPS nor the CPU).
        foreach_clipping: the same for gradient clipping (on the CPU too).
    """

    device: str
    charges: Mapping[str, Charge]
    foreach_optimizers: bool
    foreach_clipping: bool

    @contextlib.contextmanager
    def defaults(self) -> Iterator[None]:
        """Inside, torch chooses implementations on CPU tensors as it does on the target."""
        with contextlib.ExitStack() as stack:
            for owner, name, value in self._patches():
                if hasattr(owner, name):
                    stack.callback(setattr, owner, name, getattr(owner, name))
                    setattr(owner, name, value)
            yield

    def _patches(self) -> Iterator[tuple[Any, str, Any]]:
        from torch.nn.utils import clip_grad

        optimizer: Any = importlib.import_module("torch.optim.optimizer")
        if self.device == "mps":  # one kernel for a whole encoder layer: not there
            yield torch.backends.mha, "_is_fastpath_enabled", False
        if self.foreach_optimizers:
            kinds = [*optimizer._get_foreach_kernels_supported_devices(), "cpu"]
            yield optimizer, "_get_foreach_kernels_supported_devices", lambda: kinds
        if not self.foreach_clipping:
            yield clip_grad, "_has_foreach_support", lambda *_: False
            yield clip_grad, "_device_has_foreach_support", lambda *_: False


def target_for(device: Any) -> Target:
    """Return the target of a device's name or a ``torch.device``.

    Raises:
        ArgumentError: there is no model of that device's allocator.
    """
    kind = device.type if isinstance(device, torch.device) else str(device).partition(":")[0]
    if kind == "cpu":
        return Target("cpu", cpu_charges(), foreach_optimizers=False, foreach_clipping=True)
    if kind == "mps":
        charges = {name: functools.partial(_mps, name) for name in _MPS_PATHS}
        return Target("mps", charges, foreach_optimizers=False, foreach_clipping=False)
    if kind == "cuda":
        return Target("cuda", {}, foreach_optimizers=True, foreach_clipping=True)
    raise ArgumentError(f"no estimate for {device!r}: one of {', '.join(DEVICES)}", given=device)


def _mps(name: str, args: Any, *, grad: bool) -> PathCharge:
    found = mps_charge(name, args, grad=grad)
    return found if found is not None else PathCharge({}, 0)
