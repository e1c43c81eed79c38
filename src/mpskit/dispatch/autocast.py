"""``torch.autocast("mps")`` for CPU tensors that stand for mps ones: makes the casts itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mpskit.dispatch.autocast_lists import cast_policy
from mpskit.dispatch.nested import tensors_in

__all__ = ["Autocast", "AutocastMode", "is_on"]

_enabled = torch.is_autocast_enabled


def is_on() -> bool:
    """Return whether autocast is on for ``mps`` in this thread."""
    return bool(_enabled("mps"))


class Autocast:
    """Casts a function's arguments by the MPS lists; weights are cast once.

    Args:
        on_device: returns whether a tensor stands for one on the device.

    Attributes:
        casts: lower-precision copies of leaves by the leaf's ``id``, kept until torch empties its
            own cache.
    """

    def __init__(self, on_device: Callable[[torch.Tensor], bool]) -> None:
        self._on_device = on_device
        self._policies: dict[Any, str | None] = {}
        self.casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def apply(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the arguments after autocast."""
        try:
            policy = self._policies[func]
        except KeyError:
            policy = self._policies[func] = cast_policy(func)
        if policy is None:
            return args, kwargs
        dtype = self._target(policy, args, kwargs)
        return self._cast(args, dtype), {k: self._cast(v, dtype) for k, v in kwargs.items()}

    def emptying(self, clear: Callable[[], None]) -> Callable[[], None]:
        """Return ``torch.clear_autocast_cache`` so that it empties ``casts`` too."""

        def clear_autocast_cache() -> None:
            self.casts.clear()
            clear()

        return clear_autocast_cache

    def _target(self, policy: str, args: Any, kwargs: dict[str, Any]) -> torch.dtype:
        if policy == "lower":
            return torch.get_autocast_dtype("mps")
        if policy == "promote":
            tensors = [t for t in tensors_in((*args, *kwargs.values())) if self._eligible(t)]
            wide = any(t.dtype is torch.float32 for t in tensors)
            return torch.float32 if wide or not tensors else torch.get_autocast_dtype("mps")
        return torch.float32

    def _eligible(self, value: torch.Tensor) -> bool:
        wanted = value.is_floating_point() and value.dtype != torch.float64
        return wanted and self._on_device(value)

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


class AutocastMode(TorchFunctionMode):
    """Applies the casts to every function of a thread while autocast is on there."""

    def __init__(self, autocast: Autocast) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on the arguments after autocast."""
        kwargs = kwargs or {}
        if is_on():
            args, kwargs = self._autocast.apply(func, args, kwargs)
        return func(*args, **kwargs)
