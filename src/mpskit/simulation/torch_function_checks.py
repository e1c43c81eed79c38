"""Lets torch's Python-level functions run their bodies with the function mode on.

Functions such as ``F.relu`` and ``Tensor.backward`` first call ``has_torch_function``. With a
function mode on it returns True, the mode's handler gets the whole call, and the body runs with the
mode off, so its inner calls would be missed. The simulation needs only C++ functions, so inside it
the result depends on the arguments' classes alone, as without a mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import overrides
from torch.utils._device import DeviceContext

from mpskit.dispatch.patches import Patches
from mpskit.simulation.functions import FunctionMode

__all__ = ["install"]

_ORDINARY = (torch.Tensor, torch.nn.Parameter, type(None), int, float, bool)
_depth = torch._C._len_torch_function_stack


def install(patches: Patches) -> None:
    """Replace the three checks in every torch module that holds them."""
    replacements = {
        overrides.has_torch_function: _among(overrides.has_torch_function),
        overrides.has_torch_function_variadic: _variadic(overrides.has_torch_function_variadic),
        overrides.has_torch_function_unary: _variadic(overrides.has_torch_function_unary),
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "torch":
            _replace(module, replacements, patches)


def _replace(module: Any, replacements: dict[Any, Any], patches: Patches) -> None:
    for original, replacement in replacements.items():
        name = original.__name__.removeprefix("_")
        if vars(module).get(name) is original:
            patches.set(module, name, replacement)


def _among(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def has_torch_function(arguments: Any) -> bool:
        if _only_ours() and all(type(value) in _ORDINARY for value in arguments):
            return False
        return original(arguments)

    return has_torch_function


def _variadic(original: Callable[..., bool]) -> Callable[..., bool]:
    def has_torch_function_variadic(*arguments: Any) -> bool:
        if _only_ours() and all(type(value) in _ORDINARY for value in arguments):
            return False
        return original(*arguments)

    return has_torch_function_variadic


def _only_ours() -> bool:
    return all(
        isinstance(torch._C._get_function_stack_at(index), (FunctionMode, DeviceContext))
        for index in range(_depth())
    )
