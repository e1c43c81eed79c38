"""What the tracer has to know of an operator, read once from its schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from mpskit.dispatch.intercept import KERNELS_OF_OPERATORS

__all__ = ["OpFacts", "facts_of"]

# Schema says nothing of an alias, and the kernel returns one.
_HIDDEN_VIEWS = frozenset({"aten::_unsafe_view", "aten::lift", "aten::lift_fresh"})

# Operators whose integer result picks among things: their values decide which expert or which
# row is used, so they are spread evenly instead of left unknown.
_CHOOSERS = frozenset(
    {
        "aten::topk",
        "aten::argmax",
        "aten::argmin",
        "aten::argsort",
        "aten::sort",
        "aten::max",
        "aten::min",
        "aten::multinomial",
        "aten::kthvalue",
        "aten::mode",
        "aten::median",
    }
)

Route = Literal["view", "inplace", "item", "dynamic", "compute"]


@dataclass(frozen=True, slots=True)
class OpFacts:
    """One operator: how the tracer answers it.

    Attributes:
        route: ``view`` runs for real, it touches no data; ``inplace`` returns what it was given;
            ``item`` reads one value; ``dynamic`` has a shape that depends on values;
            ``compute`` is answered by its meta kernel.
        written: positions of the arguments that it writes to.
        written_names: names of keyword-only arguments that it writes to.
        chooses: its integer results are spread evenly over what they index.
        composite: it has only a decomposition, which must be traced instead.
    """

    name: str
    route: Route
    written: tuple[int, ...]
    written_names: tuple[str, ...]
    returns_written: bool
    chooses: bool
    composite: bool


def facts_of(func: Any) -> OpFacts:
    """Read an operator's schema."""
    schema = func._schema
    name = schema.name
    arguments = list(schema.arguments)
    positional = [index for index, a in enumerate(arguments) if _writes(a) and not a.kwarg_only]
    names = [a.name for a in arguments if _writes(a) and a.kwarg_only]
    return OpFacts(
        name=name.removeprefix("aten::"),
        route=_route(func, name, bool(positional or names)),
        written=tuple(positional),
        written_names=tuple(names),
        returns_written=all(_writes(r) for r in schema.returns),
        chooses=name in _CHOOSERS,
        composite=name in KERNELS_OF_OPERATORS or _is_composite(func),
    )


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _route(func: Any, name: str, writes: bool) -> Route:
    if torch.Tag.data_dependent_output in func.tags:
        return "item"
    if torch.Tag.dynamic_output_shape in func.tags:
        return "dynamic"
    if name == "aten::resize_":
        return "inplace"
    if name in _HIDDEN_VIEWS or func.is_view or torch.Tag.inplace_view in func.tags:
        return "view"
    if writes and all(_writes(r) for r in func._schema.returns):
        return "inplace"
    return "compute"


def _is_composite(func: Any) -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    name = func.name()
    return bool(
        has(name, "CompositeImplicitAutograd") and not has(name, "Meta") and not has(name, "CPU")
    )
