"""Compare a result on a device with the CPU's: :func:`assert_close`.

A GPU sums in another order and rounds its elementary functions differently, so two correct results
differ in the last digits. ``data/tolerances.toml`` has the tolerance for each device and dtype,
with its reasoning; integers and booleans must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import shown
from mpskit._base.data import read_toml
from mpskit._base.values import Value
from mpskit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    import torch

__all__ = ["Tolerance", "assert_close", "tolerance_for"]

_EXACT = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


class Tolerance(Value):
    """How far two values may differ: ``|actual - expected| <= atol + rtol * |expected|``.

    Attributes:
        rtol: the relative tolerance.
        atol: the absolute tolerance.
    """

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"


def tolerance_for(device: str, dtype: str) -> Tolerance:
    """Return the tolerance for a device type (``"mps"``) and a dtype's name (``"float32"``).

    A dtype without a row (float8, quantized) gets the tolerance of bfloat16, the coarsest; float64
    on a device without it gets that of float32.

    Raises:
        ArgumentTypeError: an argument is not a str.
    """
    if not all(isinstance(text, str) for text in (device, dtype)):
        raise ArgumentTypeError(
            f"device and dtype must be str such as 'mps' and 'float32', got {shown(device)}, "
            f"{shown(dtype)}",
            given=(device, dtype),
        )
    if dtype in _EXACT:
        return Tolerance(rtol=0.0, atol=0.0)
    table = read_toml("tolerances.toml")
    rows: dict[str, dict[str, float]] = table.get(device.partition(":")[0], table["any"])
    narrower = {"float64": "float32", "complex128": "complex64"}.get(dtype, "bfloat16")
    return Tolerance(**(rows.get(dtype, rows[narrower])))


def assert_close(
    actual: Any,
    expected: Any,
    device: str | torch.device | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raise an ``AssertionError`` unless ``actual`` equals ``expected`` within the tolerance.

    Both are copied to the CPU first. They may be tensors, arrays, numbers, or lists, tuples and
    mappings of them; shapes must be equal. Floating dtypes may differ (a float32 result against a
    float64 reference), and the coarser one then decides the tolerance. NaN equals NaN.

    Args:
        actual: what was computed.
        expected: the reference, usually the same computation on the CPU.
        device: the device whose tolerances apply; None for that of the first tensor that is not
            on the CPU, else the CPU.
        rtol: replaces the table's relative tolerance.
        atol: replaces the table's absolute tolerance.

    Raises:
        AssertionError: they differ; the message names the element, the device and the tolerance.
        ArgumentError: a tolerance is negative or not finite, or torch does not know the device.
        ArgumentTypeError: a tolerance is not a number, or a value cannot be compared.
    """
    __tracebackhide__ = True
    asked = {"rtol": _checked("rtol", rtol), "atol": _checked("atol", atol)}
    given = {name: value for name, value in asked.items() if value is not None}
    pairs = list(_pairs(actual, expected, ""))
    kind = _device_type(device, pairs)
    for path, left, right in pairs:
        _compare(path, left, right, kind, given)


def _checked(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} must be a number, got {shown(value)}", given=value)
    if not math.isfinite(value) or value < 0:
        raise ArgumentError(
            f"{name} must be finite and at least 0, got {shown(value)}", given=value
        )
    return float(value)


def _pairs(actual: Any, expected: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, actual and expected value of each leaf; the structures must be equal."""
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        if actual.keys() != expected.keys():
            raise AssertionError(
                f"{path or 'the mappings'}: got the keys {sorted(map(repr, actual))}, "
                f"expected {sorted(map(repr, expected))}"
            )
        for key, value in actual.items():
            yield from _pairs(value, expected[key], f"{path}[{key!r}]")
    elif _is_sequence(actual) and _is_sequence(expected):
        if len(actual) != len(expected):
            raise AssertionError(
                f"{path or 'the sequences'}: got {len(actual)} elements, expected {len(expected)}"
            )
        for index, (left, right) in enumerate(zip(actual, expected, strict=True)):
            yield from _pairs(left, right, f"{path}[{index}]")
    else:
        yield path, actual, expected


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _device_type(device: str | torch.device | None, pairs: list[tuple[str, Any, Any]]) -> str:
    from mpskit.backends.memory import as_device

    if device is not None:
        return as_device(device).type
    placed = (side.device for _, *sides in pairs for side in sides if _is_tensor(side))
    return next((place.type for place in placed if place.type not in ("cpu", "meta")), "cpu")


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _compare(
    path: str, actual: Any, expected: Any, device: str, given: Mapping[str, float]
) -> None:
    import torch

    __tracebackhide__ = True
    subject = path or "the result"
    left, right = _on_cpu(actual, expected, subject), _on_cpu(expected, actual, subject)
    dtypes = [str(side.dtype).removeprefix("torch.") for side in (left, right)]
    coarsest = max((tolerance_for(device, name) for name in dtypes), key=lambda t: t.rtol)
    tolerance = coarsest.model_copy(update=dict(given))
    title = f"{subject} on {device} differs from what was expected ({dtypes[0]}, {tolerance})."
    torch.testing.assert_close(
        left,
        right,
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        equal_nan=True,
        check_dtype=not _both_inexact(left, right),
        msg=lambda found: f"{title}\n{found}",
    )


def _both_inexact(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.is_floating_point() and right.is_floating_point()) or (
        left.is_complex() and right.is_complex()
    )


def _on_cpu(value: Any, other: Any, subject: str) -> torch.Tensor:
    """Return a value as a CPU tensor; a plain number gets the other side's dtype."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    plain = isinstance(value, int | float) and isinstance(other, torch.Tensor)
    try:
        return torch.as_tensor(value, dtype=other.dtype if plain else None)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(
            f"{subject} must be a tensor, an array or a number, got {shown(value)}", given=value
        ) from None
