"""What torch says of its backends: the impure half, kept small, initialising nothing.

CUDA is counted through NVML (or amdsmi), so no context is made and a later fork stays safe; MPS
is asked for its device, which does not touch the MPS allocator and so leaves its watermarks free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["TorchFacts", "read_torch"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What the installed torch has, as arguments for the rules.

    Attributes:
        version: torch's version.
        mps_built: this build of torch has the MPS backend.
        mps_available: torch found a Metal device (which a virtual machine may also claim).
        mps_bad_fork: this process was forked after Metal had been used.
        cuda_built: the build's CUDA or ROCm version, None for neither.
        cuda_count: how many CUDA or ROCm devices there are.
        rocm: the CUDA devices are AMD's.
        other: another accelerator's type and count, such as ``("xpu", 1)``.
    """

    version: str
    mps_built: bool = False
    mps_available: bool = False
    mps_bad_fork: bool = False
    cuda_built: str | None = None
    cuda_count: int = 0
    rocm: bool = False
    other: tuple[str, int] | None = None


def read_torch() -> TorchFacts:
    """Import torch and ask it; a question that fails counts as no."""
    import torch

    return TorchFacts(
        version=str(torch.__version__),
        mps_built=_ask(torch.backends.mps.is_built, False),
        mps_available=_ask(torch.backends.mps.is_available, False),
        mps_bad_fork=_ask(_mps_in_bad_fork, False),
        cuda_built=torch.version.cuda or torch.version.hip,
        cuda_count=_ask(torch.cuda.device_count, 0),
        rocm=torch.version.hip is not None,
        other=_ask(_other_accelerator, None),
    )


def _ask(question: Callable[[], _T], otherwise: _T) -> _T:
    try:
        return question()
    except (AttributeError, RuntimeError, AssertionError, OSError):
        # A build without the backend lacks the name or refuses; a broken driver raises.
        return otherwise


def _mps_in_bad_fork() -> bool:
    import torch

    bindings: Any = torch._C
    return bool(bindings._mps_is_in_bad_fork())


def _other_accelerator() -> tuple[str, int] | None:
    """Return the accelerator that is neither CUDA nor MPS; torch.accelerator exists from 2.6."""
    import torch

    accelerator: Any = torch.accelerator
    found = accelerator.current_accelerator()
    if found is None or found.type in ("cuda", "mps", "cpu"):
        return None
    count = int(accelerator.device_count())
    return (found.type, count) if count else None
