"""``torch.autocast("mps")``: CPU tensors know nothing of it, so the casts are made here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mpskit.dispatch.autocast_lists import cast_policy
from mpskit.dispatch.patches import Patches
from mpskit.simulation.core import Simulation
from mpskit.simulation.tags import Tags

__all__ = ["Autocast", "install", "is_on"]

_enabled = torch.is_autocast_enabled


def is_on() -> bool:
    """Return whether autocast is on for the simulated device in this thread."""
    return bool(_enabled("mps"))


class Autocast:
    """Casts the arguments of a function as the MPS table says; weights are cast once.

    Args:
        tags: say which arguments are on the simulated device.
    """

    def __init__(self, tags: Tags) -> None:
        self._has = tags.has
        self._policies: dict[Any, str | None] = {}
        self.casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def apply(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the arguments as autocast hands them on."""
        try:
            policy = self._policies[func]
        except KeyError:
            policy = self._policies[func] = cast_policy(func)
        if policy is None:
            return args, kwargs
        dtype = self._target(policy, args, kwargs)
        return self._cast(args, dtype), {k: self._cast(v, dtype) for k, v in kwargs.items()}

    def _target(self, policy: str, args: Any, kwargs: dict[str, Any]) -> torch.dtype:
        if policy == "lower":
            return torch.get_autocast_dtype("mps")
        if policy == "promote":
            tensors = [t for t in _tensors((args, kwargs)) if self._eligible(t)]
            wide = any(t.dtype is torch.float32 for t in tensors)
            return torch.float32 if wide or not tensors else torch.get_autocast_dtype("mps")
        return torch.float32

    def _eligible(self, value: torch.Tensor) -> bool:
        return value.is_floating_point() and value.dtype != torch.float64 and self._has(value)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            if value.dtype == dtype or not self._eligible(value):
                return value
            return self._cast_tensor(value, dtype)
        if type(value) in {list, tuple}:
            return type(value)(self._cast(part, dtype) for part in value)
        return value

    def _cast_tensor(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Cast; a leaf's lower-precision copy is kept until the outermost autocast ends."""
        keep = (
            value.requires_grad
            and value.is_leaf
            and value.dtype is torch.float32
            and dtype is not torch.float32
            and torch.is_autocast_cache_enabled()
            and not value._is_view()
        )
        if not keep:
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = (value, value.to(dtype))
        return self.casts[id(value)][1]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict)):
            yield from _tensors(value)


def install(simulation: Simulation, patches: Patches) -> None:
    """Empty the kept casts when torch empties its own."""
    original = torch.clear_autocast_cache
    casts = simulation.autocast.casts

    def clear_autocast_cache() -> None:
        casts.clear()
        original()

    patches.set(torch, "clear_autocast_cache", clear_autocast_cache)
