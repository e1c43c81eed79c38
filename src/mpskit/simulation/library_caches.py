"""Clears libraries' caches about the device when a simulation begins and ends.

A Trainer that ran on the CPU before leaves "there is no MPS" in a cache, and one that ran inside
leaves the opposite. Only modules that are already imported are touched. mpskit's own modules
register their state in ``mpskit._base.state``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

from mpskit._base import state
from mpskit.dispatch.patches import Patches

__all__ = ["CACHES", "STATES", "install"]

# (module, pattern of the qualified names in it): functions with a `cache_clear` are emptied.
CACHES: tuple[tuple[str, str], ...] = (
    ("torch.backends.mps", r"(is|get)_.*"),
    ("torch.accelerator", r".*"),
    ("transformers.utils.import_utils", r"is_torch_.*|is_.*_platform|is_cuda.*"),
    ("accelerate.utils.imports", r"is_.*"),
    ("lightning.fabric.accelerators.mps", r"MPSAccelerator\.is_available"),
    ("lightning.pytorch.accelerators.mps", r"MPSAccelerator\.is_available"),
    ("lightning_fabric.accelerators.mps", r"MPSAccelerator\.is_available"),
    ("pytorch_lightning.accelerators.mps", r"MPSAccelerator\.is_available"),
)

# (module, path of a mapping): emptied on entry, restored on exit.
STATES: tuple[tuple[str, str], ...] = (
    ("accelerate.state", "PartialState._shared_state"),
    ("accelerate.state", "AcceleratorState._shared_state"),
    ("accelerate.state", "GradientState._shared_state"),
)

_Saved = dict[tuple[str, str], dict[Any, Any]]


def install(patches: Patches) -> None:
    """Empty every known cache now, and again when ``patches`` are undone."""
    saved = {place: dict(kept) for place, kept in _states()}
    _forget()
    patches.on_exit(lambda: _restore(saved))
    patches.on_exit(state.set_aside())


def _restore(saved: _Saved) -> None:
    """Restore the earlier contents; a module imported since then had none."""
    _forget()
    for place, kept in _states():
        kept.update(saved.get(place, {}))


def _forget() -> None:
    for _, kept in _states():
        kept.clear()
    for module, pattern in CACHES:
        for name, function in _functions(sys.modules.get(module)):
            if re.fullmatch(pattern, name):
                function.cache_clear()


def _states() -> Iterator[tuple[tuple[str, str], MutableMapping[Any, Any]]]:
    for module, path in STATES:
        found: Any = sys.modules.get(module)
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, MutableMapping):
            yield (module, path), found


def _functions(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the cached functions of a module and of its classes, by qualified name."""
    if module is None:
        return
    for name, value in list(vars(module).items()):
        if hasattr(value, "cache_clear"):
            yield name, value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for inner in vars(value):
                function = getattr(value, inner, None)
                if hasattr(function, "cache_clear"):
                    yield f"{name}.{inner}", function
