"""Which dtypes MPS refuses, by torch version and macOS, with torch's own words.

Sources, all in pytorch: ``empty_mps`` in aten/src/ATen/mps/EmptyTensor.cpp (what a tensor on MPS
may be), ``getMPSDataType`` in native/mps/OperationUtils.mm (what its kernels know), and the
strings of the macOS wheels from 2.2.2 to 2.15.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpskit.backends.versions import has, older

if TYPE_CHECKING:
    import torch

__all__ = ["in_kernel", "refusal"]

_FIRST_MACOS_WITH_ALL = "14.0"
_MADE = "Cannot convert a MPS Tensor to float64 dtype"
_USED = "Cannot convert a float64 Tensor to MPS"
_WHY = "as the MPS framework doesn't support float64. Please use float32 instead."
_UNKNOWN = "Trying to convert {} to the MPS backend but it does not have support for that dtype."

# dtype -> the name that C++ prints. complex128 can be moved to a real MPS up to torch 2.10 at
# least and fails at its first use (pytorch#176981); it is refused at once here, with the text of
# that first use.
_NEVER = {
    "complex128": "ComplexDouble",
    "float8_e5m2": "Float8_e5m2",
    "float8_e4m3fnuz": "Float8_e4m3fnuz",
    "float8_e5m2fnuz": "Float8_e5m2fnuz",
    "float8_e8m0fnu": "Float8_e8m0fnu",
    "float4_e2m1fn_x2": "Float4_e2m1fn_x2",
}


def refusal(
    dtype: torch.dtype, *, creating: bool, torch_version: str, macos: str
) -> TypeError | None:
    """Return the error that MPS raises for a tensor of a dtype, or None where it takes it.

    A tensor that moves to MPS is allocated there first, so it meets the same text as one made
    there: ``torch.ones(1, dtype=torch.float64).to("mps")`` says "Cannot convert a MPS Tensor to
    float64 dtype" (tianshou#1237 on 2.1.1 and 2.5.1, pytorch#79019).

    Args:
        dtype: dtype of the tensor that would be on ``mps``.
        creating: whether a kernel makes it there (otherwise it moves there); the text is the same.
        torch_version: the installed torch.
        macos: the machine's macOS, as ``"15.6"``.
    """
    del creating
    text = _text(str(dtype).removeprefix("torch."), torch_version, macos)
    return TypeError(text) if text else None


def in_kernel(dtype: torch.dtype, *, torch_version: str, macos: str) -> TypeError | None:
    """Return the error of a kernel that meets a CPU tensor of a dtype that MPS does not know."""
    name = str(dtype).removeprefix("torch.")
    text = f"{_USED} {_WHY}" if name == "float64" else _text(name, torch_version, macos)
    return TypeError(text) if text else None


def _text(name: str, torch_version: str, macos: str) -> str | None:
    if name == "float64":
        return f"{_MADE} {_WHY}"
    if name == "bfloat16":
        return _bfloat16(torch_version, macos)
    if name == "complex64" and _needs_newer_macos(torch_version, macos):
        return "MPS complex types are only supported on MacOS 14.0 or newer."
    if name == "float8_e4m3fn" and not has("mps.float8_e4m3fn", torch_version):
        return _UNKNOWN.format("Float8_e4m3fn")
    return _UNKNOWN.format(_NEVER[name]) if name in _NEVER else None


def _bfloat16(torch_version: str, macos: str) -> str | None:
    if not has("mps.bfloat16", torch_version):
        return "BFloat16 is not supported on MPS"
    if _needs_newer_macos(torch_version, macos):
        return "MPS BFloat16 is only supported on MacOS 14 or newer"
    return None


def _needs_newer_macos(torch_version: str, macos: str) -> bool:
    """Return whether bfloat16 and complex need macOS 14 and do not have it (torch ..2.8)."""
    everywhere = has("mps.bfloat16.any_macos", torch_version)
    return not everywhere and older(macos, _FIRST_MACOS_WITH_ALL)
