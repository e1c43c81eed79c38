"""Which dtypes MPS refuses, by torch version and macOS, with torch's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit.versions import has

if TYPE_CHECKING:
    import torch

__all__ = ["refusal"]


def refusal(
    dtype: torch.dtype, *, creating: bool, torch_version: str, macos: str
) -> Exception | None:
    """Return the error that MPS raises for a dtype, or None where it takes it.

    Args:
        dtype: dtype of the tensor that would be on ``mps``.
        creating: True where a kernel makes the tensor on MPS (a factory, ``.to(float64)`` of an
            mps tensor); False where an existing tensor of that dtype is moved to MPS.
        torch_version: the installed torch.
        macos: the machine's macOS, as ``"15.6"``.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "float64":
        return TypeError(_FLOAT64_MADE if creating else _FLOAT64_MOVED)
    if name == "bfloat16" and not _has_bfloat16(torch_version, macos):
        return TypeError(_bfloat16_text(torch_version))
    if name in _REFUSED or (
        name == "float8_e4m3fn" and not has("mps.float8_e4m3fn", torch_version)
    ):
        return TypeError(_UNKNOWN.format(name=_REFUSED[name]))
    return None


_FLOAT64_MADE = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
_FLOAT64_MOVED = (
    "Cannot convert a float64 Tensor to MPS as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
_UNKNOWN = (
    "Trying to convert {name} to the MPS backend but it does not have support for that dtype."
)
_REFUSED = {"complex128": "ComplexDouble"}


def _has_bfloat16(torch_version: str, macos: str) -> bool:
    if has("mps.bfloat16.any_macos", torch_version):
        return True
    return has("mps.bfloat16", torch_version) and int(macos.split(".")[0]) >= 14


def _bfloat16_text(torch_version: str) -> str:
    if has("mps.bfloat16", torch_version):
        return "MPS bfloat16 type is supported on MacOS 14.0 or newer."
    return "BFloat16 is not supported on MPS"
