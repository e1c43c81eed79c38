"""Limits of MPS kernels that depend on the arguments of a call.

Each rule is a pure function of the arguments by name; it returns torch's text, or None where the
kernel takes them. The operators of a rule, its torch versions and its source are in
``data/mps_coverage.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpskit.simulation.coverage import Limit

__all__ = ["RULES", "bind", "refusal"]

Arguments = Mapping[str, Any]

_LARGEST_SIZE = 1 << 16
_ISSUE = "https://github.com/pytorch/pytorch/issues/96056"
_TAIL = (
    "Non-divisible input sizes are not implemented on MPS device yet. For now, you can manually "
    f"transfer tensor to cpu in this case. Please refer to [this issue]({_ISSUE})"
)


def bind(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, defaults included."""
    schema = op._schema.arguments
    bound = {part.name: part.default_value for part in schema if part.has_default_value()}
    # Keyword-only arguments come last in a schema, so a plain zip is right.
    bound |= {part.name: value for part, value in zip(schema, args, strict=False)}
    return bound | dict(kwargs)


def refusal(limit: Limit, arguments: Arguments) -> str | None:
    """Return the text with which a kernel refuses the arguments, or None."""
    return RULES[limit.rule](limit, arguments)


def _adaptive(arguments: Arguments, *, average: bool) -> str | None:
    source = arguments["self"].shape[-2:]
    gradient = arguments.get("grad_output")
    target = arguments["output_size"] if gradient is None else gradient.shape[-2:]
    if len(target) != 2:
        return None  # the operator's own check, the same on every device, raises
    pairs = list(zip(source, target, strict=True))
    shrinks = all(a >= b for a, b in pairs)
    if not shrinks and not all(a <= b for a, b in pairs):
        return (
            "Adaptive pool MPS: Input height and width must both be greater than, or equal to, "
            "or lesser than output height and width"
        )
    if not average or all(_divides(*pair) for pair in pairs):
        return None
    first, second = ("input", "output") if shrinks else ("output", "input")
    return f"Adaptive pool MPS: {first} sizes must be divisible by {second} sizes. {_TAIL}"


def _divides(one: int, other: int) -> bool:
    small, large = sorted((one, other))
    return small > 0 and large % small == 0


def _adaptive_average(_limit: Limit, arguments: Arguments) -> str | None:
    return _adaptive(arguments, average=True)


def _adaptive_maximum(_limit: Limit, arguments: Arguments) -> str | None:
    return _adaptive(arguments, average=False)


def _integers(limit: Limit, arguments: Arguments) -> str | None:
    dtype = arguments[limit.argument].dtype
    return None if dtype.is_floating_point or dtype.is_complex else limit.text


def _half_transposed_3d(limit: Limit, arguments: Arguments) -> str | None:
    tensor = arguments["input"]
    half = tensor.dtype.is_floating_point and tensor.dtype.itemsize == 2
    spatial = len(arguments["stride"])
    return limit.text if arguments["transposed"] and spatial == 3 and half else None


def _convolution_sizes(limit: Limit, arguments: Arguments) -> str | None:
    if len(arguments["stride"]) == 3 and not arguments["transposed"]:
        return None
    source = arguments["input"].shape
    sizes = source if arguments["transposed"] else _convolution_output(arguments)
    return limit.text if max(sizes, default=0) > _LARGEST_SIZE else None


def _convolution_output(arguments: Arguments) -> list[int]:
    source, weight = arguments["input"].shape, arguments["weight"].shape
    spatial = zip(
        source[2:],
        weight[2:],
        arguments["stride"],
        arguments["padding"],
        arguments["dilation"],
        strict=False,
    )
    sizes = [(n + 2 * pad - wide * (k - 1) - 1) // step + 1 for n, k, step, pad, wide in spatial]
    return [source[0], weight[0], *sizes]


RULES: Mapping[str, Callable[[Limit, Arguments], str | None]] = {
    "adaptive_average": _adaptive_average,
    "adaptive_maximum": _adaptive_maximum,
    "integers": _integers,
    "half_transposed_3d": _half_transposed_3d,
    "convolution_sizes": _convolution_sizes,
}
