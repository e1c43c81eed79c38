"""Which dtypes to compute in: :func:`precision_for`, :func:`autocast`, :func:`grad_scaler`.

Weights stay float32. Mixed precision (autocast) keeps float32 master weights and computes in a half
type, so it saves activation memory and time, not weights, gradients or optimizer states. Weights
that are float16 themselves are unsafe to train with Adam: an update smaller than 2**-11 of a
weight is lost, and ``eps=1e-8`` is 0 in float16. They are never advised here.

What each backend can do is in ``data/precision.toml``; whether an Apple chip computes in
bfloat16 or emulates it (M1 and M2 do) is in ``data/apple_chips.csv``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import check_version
from mpskit._base.data import read_toml
from mpskit._base.log import log
from mpskit._base.values import Value
from mpskit.backends import versions
from mpskit.backends.kinds import MemoryClass, kind_of
from mpskit.backends.memory import as_device, backend
from mpskit.backends.precisions import PRECISIONS, precision_name
from mpskit.host.cuda_cards import cuda_card
from mpskit.host.named import given_host, host_device

if TYPE_CHECKING:
    import torch

    from mpskit.host import Host
    from mpskit.host.named import MachineLike

__all__ = ["Precision", "autocast", "choose", "grad_scaler", "precision_for"]

_COSTS_MEMORY = (
    "This chip emulates bfloat16, and autocast to float16 costs memory where weights take most of "
    "it (LoRA): the float32 weights stay and half-precision copies are added. Qwen2.5-1.5B, 2 rows "
    "of 128 tokens: an estimated 10.3 GiB, 8.1 in float32, of 9.9 that a 16 GB Mac has to give. "
    "autocast(device, 'float16') still uses it."
)


class Precision(Value):
    """The dtypes to use on one device, by name, such as ``"bfloat16"``.

    Attributes:
        device: the device's type.
        dtype: the weights' dtype in training.
        autocast_dtype: the dtype to compute in while training; None means no autocast.
        inference_dtype: the weights' dtype for inference.
        grad_scaler_needed: gradients would underflow without a ``GradScaler``.
        grad_scaler_possible: this torch has a ``GradScaler`` that works on the device.
        storage_dtypes: floating dtypes that tensors on the device may have.
        autocast_dtypes: those that ``torch.autocast`` accepts for it.
        reasons: why, one sentence each.
    """

    device: str
    dtype: str
    autocast_dtype: str | None
    inference_dtype: str
    grad_scaler_needed: bool
    grad_scaler_possible: bool
    storage_dtypes: tuple[str, ...]
    autocast_dtypes: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def name(self) -> str:
        """The training precision's name, as the estimates take it: ``fp32``, ``bf16-mixed``."""
        weights = None if self.dtype == "float32" else self.dtype
        names = {dtypes: name for name, dtypes in PRECISIONS.items()}
        return names[weights, self.autocast_dtype]

    @property
    def grad_scaler(self) -> bool:
        """Whether to use a ``GradScaler``: it is needed and possible."""
        return self.grad_scaler_needed and self.grad_scaler_possible

    @property
    def torch_dtype(self) -> torch.dtype:
        """:attr:`dtype` as a ``torch.dtype``."""
        return _torch_dtype(self.dtype)

    @property
    def torch_autocast_dtype(self) -> torch.dtype | None:
        """:attr:`autocast_dtype` as a ``torch.dtype``; None for no autocast."""
        return _torch_dtype(self.autocast_dtype) if self.autocast_dtype else None

    @property
    def torch_inference_dtype(self) -> torch.dtype:
        """:attr:`inference_dtype` as a ``torch.dtype``."""
        return _torch_dtype(self.inference_dtype)

    def __str__(self) -> str:
        mixed = f"autocast to {self.autocast_dtype}" if self.autocast_dtype else "no autocast"
        scaler = "with" if self.grad_scaler else "without"
        first = f"{self.device}: {self.dtype} weights, {mixed}, {scaler} GradScaler"
        return "\n  ".join([f"{first}; inference in {self.inference_dtype}", *self.reasons])


def precision_for(
    device: str | torch.device | None = None,
    machine: MachineLike | None = None,
    *,
    torch_version: str | None = None,
    host: MachineLike | None = None,
) -> Precision:
    """Return the dtypes for training and inference on a device.

    Args:
        device: ``"mps"``, ``"cuda:0"``, ``"cpu"`` or a ``torch.device``; None is the machine's own.
        machine: another machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`; None is this one. Matters for MPS (macOS
            and chip) and for CUDA (the card).
        torch_version: decide for that torch; None is the installed one.
        host: the older name of ``machine``.

    Raises:
        ArgumentTypeError: ``device`` is neither a device nor a string, ``machine`` no machine, or
            ``torch_version`` no string.
        UnknownMachineError: no machine has that name.
        ArgumentError: torch knows no such device.

    On this machine's CUDA and XPU it asks the card, which initialises the backend; MPS is not
    touched.
    """
    check_version(torch_version)
    told = given_host(machine, host)
    place = as_device(device if device is not None else _own_device(told))
    torch_text = torch_version or versions.torch_version() or "0"
    if place.type == "mps":
        return _for_mps(told, torch_text)
    card = cuda_card(told.cuda_card) if told is not None and told.cuda_card else None
    native = card.computes_bfloat16 if card else backend(place).computes_bfloat16()
    return choose(place.type, torch_text, bf16_native=native)


def _own_device(host: Host | None) -> str:
    if host is not None:
        return host_device(host)
    from mpskit.device import get_optimal_device

    return str(get_optimal_device().device)


def _for_mps(host: Host | None, torch_text: str) -> Precision:
    if host is None:
        from mpskit.host import detect_host

        host = detect_host()
    macos = host.os_version if host.is_mac else None
    native = host.chip.bf16_native if host.chip else None
    return choose("mps", torch_text, macos=macos, bf16_native=native)


def choose(
    device: str, torch_version: str, *, macos: str | None = None, bf16_native: bool | None = None
) -> Precision:
    """Return the precision from facts alone.

    Args:
        device: device type.
        torch_version: the version of the torch that will run.
        macos: version of macOS, for MPS; None is unknown and counts as new enough.
        bf16_native: whether the chip or card computes in bfloat16; None is unknown.
    """
    table = read_toml("precision.toml")
    too_old = _too_old(device, torch_version, macos)
    rows = table["any"] if too_old else table.get(device, table["any"])

    def holds(row: Mapping[str, str]) -> bool:
        return _holds(row, torch_version, macos)

    storage = tuple(row["dtype"] for row in rows["storage"] if holds(row))
    casts = {row["dtype"]: bool(row.get("scaled")) for row in rows["autocast"] if holds(row)}
    possible = "scaler" in rows and holds(rows["scaler"])
    cast, why = _autocast_dtype(device, casts, possible, bf16_native)
    needed = cast is not None and casts[cast]
    return Precision(
        device=device,
        dtype="float32",
        autocast_dtype=cast,
        inference_dtype=_inference_dtype(device, storage, bf16_native),
        grad_scaler_needed=needed,
        grad_scaler_possible=possible,
        storage_dtypes=storage,
        autocast_dtypes=tuple(casts),
        reasons=(too_old,) if too_old else (why, *_remarks(device, cast, storage, bf16_native)),
    )


def _holds(row: Mapping[str, str], torch_version: str, macos: str | None) -> bool:
    if "feature" in row and not versions.has(row["feature"], torch_version):
        return False
    if "any_macos" in row and versions.has(row["any_macos"], torch_version):
        return True
    return "macos" not in row or not versions.older(macos, row["macos"])


def _autocast_dtype(
    device: str, casts: Mapping[str, bool], scaler: bool, bf16_native: bool | None
) -> tuple[str | None, str]:
    """Choose among the dtypes that autocast accepts: safe first, then fast."""
    native = _computes_bfloat16(device, bf16_native)
    if kind_of(device).memory is MemoryClass.HOST:
        return None, "On most CPUs autocast to bfloat16 is slower than float32."
    if device == "mps" and bf16_native is False and casts:
        return None, _COSTS_MEMORY
    if "bfloat16" in casts and native:
        return "bfloat16", "bfloat16 has float32's range, so gradients need no scaling."
    if "float16" in casts and scaler:
        seen = "is emulated or unknown on this GPU" if "bfloat16" in casts else "is not available"
        return "float16", f"bfloat16 {seen}; float16 with a GradScaler is safe."
    if "bfloat16" in casts:
        return "bfloat16", (
            "float16 would need a GradScaler, which this torch does not have for the device; "
            "bfloat16 is emulated here: it saves memory, not time."
        )
    if "float16" in casts:
        return None, (
            "autocast offers float16 only, whose gradients underflow without a GradScaler, and "
            "this torch has none for the device: fine for inference, unsafe for training."
        )
    return None, f"torch has no autocast for {device} at this version."


def _inference_dtype(device: str, storage: tuple[str, ...], bf16_native: bool | None) -> str:
    if kind_of(device).memory is MemoryClass.HOST or "float16" not in storage:
        return "float32"
    native = "bfloat16" in storage and _computes_bfloat16(device, bf16_native)
    return "bfloat16" if native else "float16"


def _computes_bfloat16(device: str, told: bool | None) -> bool:
    return kind_of(device).bfloat16 if told is None else told


def _too_old(device: str, torch_version: str, macos: str | None) -> str | None:
    floor = versions.minimum_macos(torch_version)
    if device != "mps" or not versions.older(macos, floor):
        return None
    return f"MPS does not work here: torch {torch_version} needs macOS {floor}, this is {macos}."


def _remarks(
    device: str, cast: str | None, storage: tuple[str, ...], bf16_native: bool | None
) -> list[str]:
    remarks = []
    if device == "mps" and bf16_native is None:
        remarks.append(
            "The Mac's chip is unknown and assumed to be an M3 or later: M1 and M2 emulate "
            "bfloat16, so float32 is advised for them. Pass machine= to name the Mac."
        )
    if device == "mps" and "bfloat16" not in storage:
        remarks.append("bfloat16 needs torch 2.3 and macOS 14 (any macOS from torch 2.9).")
    if not kind_of(device).float64:
        remarks.append(f"{kind_of(device).title} has no float64 and no complex128.")
    if cast:
        remarks.append(
            "Keep the weights float32: mixed precision saves activations and time; weights that "
            "are float16 themselves lose small updates. For LoRA it adds half-precision copies of "
            "the frozen weights, which can be more than it saves: estimate both."
        )
    return remarks


def autocast(
    device: str | torch.device,
    dtype: str | torch.dtype | None = None,
    *,
    machine: MachineLike | None = None,
    host: MachineLike | None = None,
) -> contextlib.AbstractContextManager[Any]:
    """Return a context that computes in ``dtype`` on the device, on any torch from 2.2.

    Args:
        device: the device that the model is on.
        dtype: float16 or bfloat16, or a precision with one (``"fp16-mixed"``); None takes
            :func:`precision_for`'s choice, which may be no autocast. float32 means none too.
        machine: as for :func:`precision_for`.
        host: the older name of ``machine``.

    Where autocast lacks the dtype (MPS before torch 2.5; bfloat16 on 2.5) the context does nothing:
    the computation runs in the weights' own dtype, and a warning is logged.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: torch knows no such device, or ``dtype`` is not a floating dtype.
    """
    import torch

    precision = precision_for(device, machine, host=host)
    name = _dtype_name(dtype) or precision.autocast_dtype
    if name is None or name == "float32":
        return contextlib.nullcontext()
    if name not in precision.autocast_dtypes:
        log.warning("autocast to %s is not possible on %s", name, precision.device)
        return contextlib.nullcontext()
    return torch.autocast(precision.device, dtype=_torch_dtype(name))


def grad_scaler(
    device: str | torch.device,
    dtype: str | torch.dtype | None = None,
    *,
    machine: MachineLike | None = None,
    host: MachineLike | None = None,
) -> torch.amp.GradScaler:
    """Return a ``GradScaler`` for the device: enabled where one is needed and possible.

    A disabled one passes the loss and the optimizer step through, so one training loop serves
    every device. Where one is needed and not possible (float16 on MPS before torch 2.8) it is
    disabled and a warning is logged.

    Args:
        device: the device that the model is on.
        dtype: what :func:`autocast` was given; None takes :func:`precision_for`'s choice.
        machine: as for :func:`precision_for`.
        host: the older name of ``machine``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: torch knows no such device, or ``dtype`` is not a floating dtype.
    """
    precision = precision_for(device, machine, host=host)
    name = _dtype_name(dtype) or precision.autocast_dtype
    needed = name == "float16"
    if needed and not precision.grad_scaler_possible:
        log.warning("float16 on %s needs a GradScaler, which torch lacks there", precision.device)
    enabled = needed and precision.grad_scaler_possible
    scaler: torch.amp.GradScaler = backend(device).grad_scaler(enabled=enabled)
    return scaler


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    if dtype is None:
        return None
    weights, mixed = PRECISIONS[precision_name(dtype)]
    return mixed or weights or "float32"


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
