"""What the target device does differently from the CPU that a step is traced on."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mpskit._base.arguments import check_count, shown
from mpskit.backends.kinds import ESTIMATED, AllocatorRules, kind_of
from mpskit.backends.versions import has
from mpskit.device import get_optimal_device
from mpskit.dispatch.mps_op_memory import RULES, Rule
from mpskit.dispatch.patches import Patches, in_place
from mpskit.errors import ArgumentError
from mpskit.estimate.trace.workspace import cpu_op_memory
from mpskit.host.named import MachineLike, as_host, host_device

__all__ = ["Target", "check_processes", "target_device", "target_for"]


@dataclass(frozen=True)
class Target:
    """A device whose memory is asked for.

    Attributes:
        device: ``cpu``, ``mps``, ``cuda`` or ``xpu``.
        missing: operators that it has no kernel for and the trace would answer.
        op_memory: operators that take more there than their outputs show, with their rules.
        foreach_optimizers: whether optimizers go through all parameters at once by default
            (``torch.utils._foreach_utils``: on CUDA and XPU, not on MPS nor the CPU).
        foreach_clipping: the same for gradient clipping (on the CPU too).
    """

    device: str
    missing: frozenset[str]
    op_memory: Mapping[str, Rule]
    foreach_optimizers: bool
    foreach_clipping: bool

    def install(self, patches: Patches) -> None:
        """Let torch choose implementations on this thread's CPU tensors as on the target."""
        from torch.nn.utils import clip_grad

        optimizer: Any = importlib.import_module("torch.optim.optimizer")
        replaced: list[tuple[Any, str, Any]] = []
        if self.device == "mps":  # one kernel for a whole encoder layer: not there
            replaced.append((torch.backends.mha, "get_fastpath_enabled", False))
        if self.foreach_optimizers:
            kinds = [*optimizer._get_foreach_kernels_supported_devices(), "cpu"]
            replaced.append((optimizer, "_get_foreach_kernels_supported_devices", kinds))
        if not self.foreach_clipping:
            replaced.append((clip_grad, "_has_foreach_support", False))
            replaced.append((clip_grad, "_device_has_foreach_support", False))
        for owner, name, answer in replaced:
            patches.bind(owner, name, in_place(functools.partial(_answer, answer)))


def _answer(value: Any, *_: Any, **__: Any) -> Any:
    return value


def target_device(device: Any, machine: MachineLike | None = None) -> Any:
    """Return the device meant: the one given, a machine's own, or the one chosen on this machine.

    Raises:
        UnknownMachineError: no machine has that name.
        ArgumentTypeError: ``machine`` is no machine.
        ArgumentError: the machine is not known to have the device.
    """
    if machine is not None:
        return host_device(as_host(machine), None if device is None else str(device))
    return get_optimal_device().device if device is None else device


def target_for(device: Any) -> Target:
    """Return the target of a device's name or a ``torch.device``.

    Raises:
        ArgumentError: there is no model of that device's allocator.
    """
    kind = kind_of(device if isinstance(device, torch.device) else str(device))
    if kind.allocator is None:
        known = ", ".join(ESTIMATED)
        raise ArgumentError(f"no estimate for {shown(device)}: one of {known}", given=device)
    return Target(
        kind.name,
        _missing(kind.name),
        _OP_MEMORY[kind.allocator](),
        foreach_optimizers=kind.foreach,
        foreach_clipping=kind.allocator is not AllocatorRules.MPS,
    )


def check_processes(world_size: int, device: str) -> None:
    """Raise unless so many processes can train together, on a device each.

    Raises:
        ArgumentError: below one, or several on MPS.
        ArgumentTypeError: no int.
    """
    check_count("world_size", world_size, least=1)
    if world_size > 1 and device == "mps":
        raise ArgumentError(
            "torch has no collective operations for MPS tensors, and a Mac has one GPU: train "
            "with one process there, or with several on CUDA cards or on the CPU (backend gloo)",
            given=world_size,
        )


def _missing(device: str) -> frozenset[str]:
    """Return what the trace answers although the target raises NotImplementedError."""
    lacks = device == "mps" and not has("mps.ctc_loss", torch.__version__)
    return frozenset({"_ctc_loss"} if lacks else ())


_OP_MEMORY: Mapping[AllocatorRules, Callable[[], Mapping[str, Rule]]] = {
    AllocatorRules.CPU: cpu_op_memory,
    AllocatorRules.MPS: lambda: RULES,
    AllocatorRules.CACHING: dict,
}
