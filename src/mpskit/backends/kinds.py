"""Table of torch's backends, one row each: the only place that tells them apart.

The rows stand in the order of preference. A new backend is a row here, its dtypes in
``data/precision.toml`` and its error texts in ``data/oom_texts.toml``. No torch is imported.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = [
    "ACCELERATORS",
    "ESTIMATED",
    "KINDS",
    "NAMES",
    "ORDER",
    "ROCM",
    "AllocatorRules",
    "Api",
    "Kind",
    "MemoryClass",
    "StatusRule",
    "device_type",
    "kind_of",
]


class Api(Enum):
    """The torch module that answers for a backend."""

    NONE = "none"  # no device allocator
    MODULE = "module"  # torch.cuda and torch.xpu share their names
    MPS = "mps"
    ACCELERATOR = "accelerator"


class MemoryClass(Enum):
    """Whose memory a device's tensors are in."""

    HOST = "host"
    UNIFIED = "unified"
    OWN = "own"  # an integrated GPU of these backends reports itself that it shares the RAM


class AllocatorRules(Enum):
    """Which model in ``mpskit.allocator`` follows the backend's allocator."""

    CPU = "cpu"
    MPS = "mps"
    CACHING = "caching"


class StatusRule(Enum):
    """Which rule of ``mpskit.device.status`` says whether the backend can be used."""

    ALWAYS = "always"
    METAL = "metal"
    CARD = "card"


class Kind(NamedTuple):
    """A backend.

    Attributes:
        name: torch's device type.
        title: its usual name.
        memory: whose memory its tensors are in.
        api: how torch is asked about it.
        status: how to tell whether it can be used; None for what is never chosen (``meta``).
        allocator: how an estimate counts its memory; None for no estimate.
        numbered: there may be several, so a choice names one (``cuda:0``).
        pins: copies from page-locked host memory are asynchronous.
        non_blocking: a ``non_blocking`` copy is safe. On MPS it corrupts its data when the source
            is freed or reused too early (pytorch#139550, pytorch#189690).
        fork_safe: a process that has used it may fork.
        float64: it holds 64-bit floating point.
        bfloat16: all its devices compute in bfloat16, so there is no need to ask one.
        foreach: optimizers update all parameters at once by default
            (``torch.utils._foreach_utils``).
        collectives: its backend in ``torch.distributed``; None for none that works. Torch's own
            table gives MPS ``gloo``, whose operations refuse MPS tensors (torch 2.13).
        runtime: what the version belongs to; empty for the title itself.
        vendor: the PCI vendor of its cards, for a guess without torch.
        build: what a wheel's local version begins with (``2.13.0+xpu``).
        install: what installs a torch that has it.
        look: the command that shows whether the driver sees a card.
        hidden_by: the variable that hides cards from it.
    """

    name: str
    title: str
    memory: MemoryClass = MemoryClass.OWN
    api: Api = Api.ACCELERATOR
    status: StatusRule | None = StatusRule.CARD
    allocator: AllocatorRules | None = None
    numbered: bool = True
    pins: bool = False
    non_blocking: bool = True
    fork_safe: bool = True
    float64: bool = True
    bfloat16: bool = True
    foreach: bool = False
    collectives: str | None = None
    runtime: str = ""
    vendor: str | None = None
    build: str | None = None
    install: str | None = None
    look: str | None = None
    hidden_by: str | None = None

    @property
    def caches(self) -> bool:
        """Whether torch caches its freed memory, so that there is a cache to empty."""
        return self.api is not Api.NONE

    def label(self, version: str | None) -> str:
        """Return its name with a version: ``CUDA 12.8``, ``ROCm (HIP 6.2)``."""
        if version is None:
            return self.title
        text = f"{self.runtime} {version}" if self.runtime else version
        return f"{self.title} ({text})" if self.runtime else f"{self.title} {text}"


_CUDA = Kind(
    "cuda", "CUDA", api=Api.MODULE, allocator=AllocatorRules.CACHING, pins=True, bfloat16=False,
    foreach=True, collectives="nccl", vendor="0x10de", build="cu",
    hidden_by="CUDA_VISIBLE_DEVICES", look="nvidia-smi",
    install="python -m pip install torch  # on a machine with an NVIDIA or AMD card",
)  # fmt: skip
_MPS = Kind(
    "mps", "MPS", MemoryClass.UNIFIED, Api.MPS, StatusRule.METAL, AllocatorRules.MPS,
    numbered=False, non_blocking=False, fork_safe=False, float64=False,
)  # fmt: skip
_XPU = Kind(
    "xpu", "XPU", api=Api.MODULE, allocator=AllocatorRules.CACHING, pins=True, foreach=True,
    collectives="xccl", runtime="SYCL", vendor="0x8086", build="xpu",
    hidden_by="ZE_AFFINITY_MASK", look="clinfo -l",
    install="python -m pip install torch --index-url https://download.pytorch.org/whl/xpu"
    "  # with an Intel GPU",
)  # fmt: skip
_CPU = Kind(
    "cpu", "CPU", MemoryClass.HOST, Api.NONE, StatusRule.ALWAYS, AllocatorRules.CPU, numbered=False,
    collectives="gloo",
)  # fmt: skip
_META = Kind("meta", "meta", api=Api.NONE, status=None, numbered=False)

# Torch calls ROCm cuda everywhere; what people read and type differs.
ROCM = _CUDA._replace(
    title="ROCm", runtime="HIP", vendor="0x1002", build="rocm", hidden_by="HIP_VISIBLE_DEVICES",
    look="rocminfo",
)  # fmt: skip

KINDS = {kind.name: kind for kind in (_CUDA, _MPS, _XPU, _CPU, _META)}
ACCELERATORS = tuple(kind.name for kind in KINDS.values() if kind.caches)
# The order of preference; "*" is an accelerator from a plug-in.
ORDER = (*ACCELERATORS, "*", _CPU.name)
# The devices whose memory can be estimated.
ESTIMATED = tuple(kind.name for kind in KINDS.values() if kind.allocator)
_PLUGGED_IN = ("hpu", "npu", "mlu")
# What a variable or a policy may name.
NAMES = (_CPU.name, *ACCELERATORS, *_PLUGGED_IN)


def device_type(device: torch.device | str) -> str:
    """Return the type of a device: ``cuda`` of ``"cuda:0"``."""
    return device.partition(":")[0] if isinstance(device, str) else device.type


def kind_of(device: torch.device | str) -> Kind:
    """Return a device's row; one known only to ``torch.accelerator`` gets a conservative one.

    ``"rocm"``, which no device is called, is CUDA's variant, for texts that name it.
    """
    name = device_type(device)
    found = ROCM if name == "rocm" else KINDS.get(name)
    return found if found is not None else Kind(name, name.upper())
