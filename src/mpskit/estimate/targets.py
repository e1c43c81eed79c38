"""What the target device does differently from the CPU that a step is traced on."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mpskit.backends.kinds import ESTIMATED, AllocatorRules, kind_of
from mpskit.dispatch.mps_op_memory import PathCharge, mps_charge
from mpskit.errors import ArgumentError
from mpskit.estimate.trace.tracer import Charge
from mpskit.estimate.trace.workspace import cpu_charges

__all__ = ["Target", "target_for"]

_MPS_PATHS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "mkldnn_rnn_layer",
)


@dataclass(frozen=True)
class Target:
    """A device whose memory is asked for.

    Attributes:
        device: ``cpu``, ``mps``, ``cuda`` or ``xpu``.
        charges: operators whose memory there is not what their results show.
        foreach_optimizers: whether optimizers go through all parameters at once by default
            (``torch.utils._foreach_utils``: on CUDA and XPU, not on MPS nor the CPU).
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
    kind = kind_of(device if isinstance(device, torch.device) else str(device))
    if kind.allocator is None:
        known = ", ".join(ESTIMATED)
        raise ArgumentError(f"no estimate for {device!r}: one of {known}", given=device)
    return Target(
        kind.name,
        _CHARGES[kind.allocator](),
        foreach_optimizers=kind.foreach,
        foreach_clipping=kind.allocator is not AllocatorRules.MPS,
    )


_CHARGES: Mapping[AllocatorRules, Callable[[], Mapping[str, Charge]]] = {
    AllocatorRules.CPU: cpu_charges,
    AllocatorRules.MPS: lambda: {name: functools.partial(_mps, name) for name in _MPS_PATHS},
    AllocatorRules.CACHING: dict,
}


def _mps(name: str, args: Any, *, grad: bool) -> PathCharge:
    found = mps_charge(name, args, grad=grad)
    return found if found is not None else PathCharge({}, 0)
