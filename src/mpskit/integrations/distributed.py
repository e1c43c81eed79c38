"""Which of torch's collective backends a device needs: :func:`distributed_backend`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit._base.arguments import wrong_type
from mpskit.backends.kinds import kind_of
from mpskit.errors import ArgumentError, DeviceUnavailableError
from mpskit.memory.cache import check_device

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike

__all__ = ["distributed_backend"]


def distributed_backend(device: DeviceLike) -> str:
    """Return the backend for ``torch.distributed.init_process_group``; nothing is imported.

    It is ``nccl`` for CUDA (and ROCm, whose RCCL torch calls so), ``xccl`` for XPU (torch 2.8),
    ``gloo`` for the CPU. Whether this build of torch has it is for ``init_process_group`` to say.

    Args:
        device: where the tensors are.

    Raises:
        DeviceUnavailableError: MPS, for which torch would start ``gloo`` and fail at the first
            collective operation.
        ArgumentError: a device of which mpskit knows no backend; its plug-in's manual names one.
        ArgumentTypeError: neither a device nor a str.
    """
    if device is None:
        raise wrong_type("device", "one such as 'cuda' or 'cpu'", device)
    check_device(device)
    kind = kind_of(device)
    if kind.name == "mps":
        raise DeviceUnavailableError(
            "torch has no collective operations for MPS tensors: train with one process, or with "
            "several on the CPU (MPSKIT_DEVICE=cpu, backend gloo)",
            given=device,
        )
    if kind.collectives is None:
        raise ArgumentError(
            f"no collective backend is known for {kind.name!r}: name its plug-in's own",
            given=device,
        )
    return kind.collectives
