"""Reads what torch says of its backends, without initialising any.

CUDA is counted through NVML (or amdsmi) and XPU through Level Zero's Sysman where torch can, so no
context is made and a later fork stays safe; MPS is asked for its device, which does not touch the
MPS allocator and so leaves its watermarks free.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mpskit.backends.kinds import KINDS, ROCM, Api, Kind, StatusRule, kind_of
from mpskit.backends.versions import has

__all__ = [
    "Found",
    "TorchFacts",
    "build_of",
    "current_accelerator",
    "read_metal",
    "read_torch",
    "torch_trouble",
]

_ESSENTIAL = ("__version__", "_C", "Tensor", "backends", "device", "nn", "optim")

_T = TypeVar("_T")

# Torch's warning about a driver, by device type: it is given once per process, at the first count.
_troubles: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Found:
    """What torch says of one backend.

    Attributes:
        kind: its row; for ``cuda`` that of ROCm if the build is for AMD cards.
        built: this build of torch has the backend.
        count: how many devices torch sees (a virtual Mac may claim one that does not work).
        version: the version of CUDA, HIP or the SYCL compiler that it was built for.
        bad_fork: this process was forked after the backend had been used.
        trouble: torch's warning about its driver when its devices were counted.
    """

    kind: Kind
    built: bool = False
    count: int = 0
    version: str | None = None
    bad_fork: bool = False
    trouble: str | None = None

    @property
    def label(self) -> str:
        """The backend's usual name: ``CUDA 12.8``, ``ROCm (HIP 6.2)``."""
        return self.kind.label(self.version)


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What the installed torch has, as input for the rules.

    Attributes:
        version: torch's version.
        found: the answers, by device type; a backend that is missing was not built, and the CPU is
            always there.
    """

    version: str
    found: Mapping[str, Found] = field(default_factory=dict)

    def of(self, name: str) -> Found:
        """Return what torch says of a backend."""
        kind = kind_of(name)
        there = kind.status is StatusRule.ALWAYS
        return self.found.get(name) or Found(kind, built=there, count=int(there))


def read_torch() -> TorchFacts:
    """Import torch and ask it; a query that fails counts as no."""
    import torch

    found = [_module(kind) for kind in KINDS.values() if kind.api is Api.MODULE]
    found += [_mps(kind) for kind in KINDS.values() if kind.api is Api.MPS]
    other = _ask(_other_accelerator, None)
    found += [other] if other else []
    return TorchFacts(str(torch.__version__), {one.kind.name: one for one in found})


def torch_trouble() -> str | None:
    """Return what is wrong with the installed torch if it cannot be used at all, else None.

    An interrupted installation may import and lack most of its names.
    """
    try:
        import torch

        lacks = [name for name in _ESSENTIAL if not hasattr(torch, name)]
    except Exception as error:  # noqa: BLE001 - a broken torch can raise anything
        return f"torch cannot be imported: {type(error).__name__}: {error}"
    return f"torch is installed only in part: it has no torch.{lacks[0]}" if lacks else None


def build_of(kind: Kind) -> tuple[Kind, str | None]:
    """Return the row and version of a backend in this build of torch, such as ROCm's."""
    import torch

    hip = getattr(torch.version, "hip", None)
    if hip and kind.name == ROCM.name:
        return ROCM, str(hip)
    version = getattr(torch.version, kind.name, None)
    return kind, None if version is None else str(version)


def current_accelerator() -> str | None:
    """Return the type of the accelerator that torch was built for; None for none or before 2.6."""
    import torch

    if not has("accelerator", str(torch.__version__)):
        return None
    # torch 2.6 raises where there is none; later ones return None.
    found: Any = _ask(torch.accelerator.current_accelerator, None)
    return None if found is None else str(found.type)


def _ask(question: Callable[[], _T], otherwise: _T) -> _T:
    try:
        return question()
    except (AttributeError, RuntimeError, AssertionError, OSError):
        # A build without the backend lacks the name or refuses; a broken driver raises.
        return otherwise


def _module(kind: Kind) -> Found:
    """Ask ``torch.cuda`` or ``torch.xpu``, and keep its warning about a missing driver."""
    import torch

    module: Any = getattr(torch, kind.name, None)
    row, version = build_of(kind)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = _ask(lambda: int(module.device_count()), 0)
    for text in (str(one.message) for one in said):
        if "driver" in text:
            _troubles[kind.name] = text
    return Found(
        row,
        built=bool(getattr(torch._C, f"_has_{kind.name}", False)),
        count=count,
        version=version,
        trouble=_troubles.get(kind.name),
    )


def _mps(kind: Kind) -> Found:
    import torch

    bindings: Any = torch._C
    return Found(
        kind,
        built=_ask(torch.backends.mps.is_built, False),
        count=int(_ask(torch.backends.mps.is_available, False)),
        bad_fork=bool(_ask(lambda: bindings._mps_is_in_bad_fork(), False)),
    )


def _other_accelerator() -> Found | None:
    """Return the accelerator that has no row of its own."""
    import torch

    name = current_accelerator()
    if name is None or name in KINDS:
        return None
    count = int(torch.accelerator.device_count())
    return Found(Kind(name, name.upper()), built=True, count=count) if count else None


def read_metal() -> dict[str, Any]:
    """Return the Metal device's name and cores, if an imported torch has them (from 2.9)."""
    torch = sys.modules.get("torch")
    if torch is None or not has("mps.get_name", str(torch.__version__)):
        return {}
    mps = torch.backends.mps
    if not mps.is_available():
        return {}
    return {"metal_device": mps.get_name(), "metal_cores": mps.get_core_count()}
