"""``torch.compile`` inside a simulation: code runs eagerly, with one warning.

A module still becomes an ``OptimizedModule``, because ``_orig_mod`` is part of its state's keys.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import torch

from mpskit.dispatch.patches import Patches
from mpskit.errors import SimulationWarning

__all__ = ["install"]


def install(patches: Patches) -> None:
    """Replace ``torch.compile``, and switch off what was compiled before."""
    said: list[bool] = []

    def compile(model: Any = None, **_: Any) -> Any:  # noqa: A001 - torch's name
        if not said:
            said.append(True)
            warnings.warn(
                "torch.compile does nothing on a simulated Mac: the code runs eagerly",
                SimulationWarning,
                stacklevel=2,
            )
        return _eager if model is None else _eager(model)

    patches.set(torch, "compile", compile)
    dynamo = sys.modules.get("torch._dynamo.config")
    if dynamo is not None:
        context = dynamo.patch(disable=True)
        context.__enter__()
        patches.on_exit(lambda: context.__exit__(None, None, None))


def _eager(model: Any) -> Any:
    if not isinstance(model, torch.nn.Module):
        return model
    # `import torch` does not import it, but torch.compile does.
    return importlib.import_module("torch._dynamo").disable(model)
