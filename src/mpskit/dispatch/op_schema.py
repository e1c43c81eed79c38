"""Facts from an operator's schema and registrations, read once per operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

__all__ = ["OpSchema", "is_recorded"]

# The schema says nothing of an alias, and the kernel returns one.
_HIDDEN_VIEWS = frozenset({"aten::_unsafe_view", "aten::lift", "aten::lift_fresh"})

Route = Literal["view", "inplace", "item", "dynamic", "compute"]


@dataclass(frozen=True, slots=True)
class OpSchema:
    """Facts about one operator.

    Attributes:
        name: without overload, and without namespace where that is ``aten``: ``"mm"``.
        route: ``view`` touches no data; ``inplace`` returns what it was given; ``item`` reads one
            value; ``dynamic`` has a shape that depends on values; ``compute`` is any other.
        written: positions of the arguments that it writes to.
        written_names: names of keyword-only arguments that it writes to.
        has_device: it takes a device argument.
        fresh: it may return a storage of its own.
        random: it draws random numbers.
        composite: the CPU has no kernel of its own for it, only its decomposition.
    """

    name: str
    route: Route
    written: tuple[int, ...]
    written_names: tuple[str, ...]
    has_device: bool
    fresh: bool
    random: bool
    composite: bool

    @classmethod
    def of(cls, func: Any, **more: Any) -> Self:
        """Read an operator; ``more`` are the fields that a subclass adds."""
        schema = func._schema
        arguments = list(schema.arguments)
        positional = [i for i, a in enumerate(arguments) if _writes(a) and not a.kwarg_only]
        names = [a.name for a in arguments if _writes(a) and a.kwarg_only]
        return cls(
            name=schema.name.removeprefix("aten::"),
            route=_route(func, schema.name, bool(positional or names)),
            written=tuple(positional),
            written_names=tuple(names),
            has_device=any(a.name == "device" for a in arguments),
            fresh=any(value.alias_info is None for value in schema.returns),
            random=torch.Tag.nondeterministic_seeded in func.tags,
            composite=_is_composite(func),
            **more,
        )


def is_recorded(args: Sequence[Any]) -> bool:
    """Return whether autograd records a call with these positional arguments."""
    return torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in args
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
    return bool(has(name, "CompositeImplicitAutograd")) and not has(name, "CPU")
