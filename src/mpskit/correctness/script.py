"""Writes a wrong operator down as a script that needs torch and nothing else."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import torch

from mpskit.correctness.operator_check import EQUIVALENTS, Fault

__all__ = ["reproduces", "script_for"]

_EMBEDDED = 1 << 20  # bytes of data that a script may hold, before compression

_SCRIPT = '''"""{name} on {device} differs from the CPU: found by mpskit.find_divergence.

{inputs}
Run it with: python {{this file}} [device]
"""

import base64
import sys
import zlib

import torch


def drawn(n, dtype):
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(n, generator=GENERATOR, dtype=torch.float32).to(dtype)
    return torch.randint(0, 2, (n,), generator=GENERATOR).to(dtype)


def data(text, dtype):
    return torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(text))), dtype=dtype)


def on(device, operand, double=False):
    flat, shape, strides = operand
    if double and flat.is_floating_point():
        flat = flat.double()
    return flat.clone().to(device).as_strided(shape, strides)


GENERATOR = torch.Generator().manual_seed(0)
# flat data, shape, strides
OPERANDS = [
{operands}
]
on_device = torch.ops.{operator}
on_cpu = {equivalent}


def results(device, call, double=False):
    t = [on(device, operand, double) for operand in OPERANDS]
    dtype = (lambda d: torch.float64 if double and d.is_floating_point else d)
    out = call({arguments})
    out = list(out) if isinstance(out, (list, tuple)) else [out]
    return [one.cpu() for one in [*out, *t] if isinstance(one, torch.Tensor)]


def error(device):
    """Return the device's error and the CPU's, relative to the largest value."""
    worst = (0.0, 0.0)
    try:
        right = results("cpu", on_cpu, double=True)
    except (RuntimeError, NotImplementedError):
        right = results("cpu", on_cpu)
    for got, same, exact in zip(results(device, on_device), results("cpu", on_cpu), right):
        if got.shape != same.shape or not torch.equal(got.isfinite(), same.isfinite()):
            return (float("inf"), 0.0)
        keep = same.isfinite() & exact.isfinite()
        if keep.any():
            scale = exact[keep].double().abs().max().item() or 1.0
            right = exact[keep].double()
            off = [(x[keep].double() - right).abs().max().item() for x in (got, same)]
            worst = max(worst, (off[0] / scale, off[1] / scale))
    return worst


if __name__ == "__main__":
    found = error(sys.argv[1] if len(sys.argv) > 1 else "{device}")
    print("largest error relative to the largest value: "
          f"device {{found[0]:.3g}}, CPU {{found[1]:.3g}}")
'''


def script_for(fault: Fault, device: str) -> tuple[str, bool]:
    """Return a script, and whether it showed the fault when it was tried here.

    Random inputs of the same shapes and strides are tried first; where these come out right, the
    inputs themselves are written into the script, up to a MiB.
    """
    for embed in (False, True):
        text = _script(fault, device, embed=embed)
        if reproduces(text, device, fault.deviation.allowed):
            return text, True
    return _script(fault, device, embed=True), False


def reproduces(text: str, device: str, allowed: float) -> bool:
    """Run a script's comparison in this process and return whether it shows a fault."""
    names: dict[str, Any] = {"__name__": "reproduction"}
    try:
        exec(compile(text, "reproduction", "exec"), names)  # noqa: S102 - written by this module
        with torch.no_grad():
            found, own = names["error"](device)
    except Exception:  # noqa: BLE001 - such as random indices that are out of range
        return False
    return bool(found > max(allowed, 2 * own))


def _script(fault: Fault, device: str, *, embed: bool) -> str:
    operands: list[str] = []

    def written(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            operands.append(f"    {_operand(value, embed=embed)},")
            return f"t[{len(operands) - 1}]"
        if isinstance(value, torch.device):
            return "torch.device(device)"
        if isinstance(value, torch.dtype):
            return f"dtype({value})"
        if isinstance(value, float):
            return f"float({str(value)!r})"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(written, value))}]"
        return repr(value)

    given = [written(value) for value in fault.args]
    given += [f"{name}={written(value)}" for name, value in fault.kwargs.items()]
    operator = str(fault.call.func)
    equivalent = EQUIVALENTS.get(fault.call.name, "on_device")
    kind = "The inputs are those of the step." if embed else "The inputs are random."
    return _SCRIPT.format(
        name=operator,
        device=device,
        inputs=kind,
        operands="\n".join(operands),
        operator=operator,
        equivalent=equivalent,
        arguments=", ".join(given),
    )


def _operand(tensor: torch.Tensor, *, embed: bool) -> str:
    sizes, strides = tuple(tensor.shape), tuple(tensor.stride())
    reach = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    reach = 0 if tensor.numel() == 0 else reach
    exact = embed or not (tensor.is_floating_point() or tensor.is_complex())
    if exact and reach and reach * tensor.itemsize <= _EMBEDDED:
        flat = tensor.as_strided((reach,), (1,)).contiguous().view(torch.uint8)
        packed = zlib.compress(bytes(flat.tolist()), 9)
        text = base64.b85encode(packed).decode()
        return f"(data({text!r}, {tensor.dtype}), {sizes}, {strides})"
    return f"(drawn({reach}, {tensor.dtype}), {sizes}, {strides})"
