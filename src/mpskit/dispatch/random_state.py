"""Runs random operators on a private generator, with torch's default generator unchanged."""

from __future__ import annotations

import random
import sys
import threading
from typing import Any

import torch

from mpskit._base.locks import run_locked
from mpskit.dispatch.patches import Patches, in_place

__all__ = ["draw", "isolate"]

_LENDING = threading.RLock()
_takes_keyword: dict[Any, bool] = {}


def draw(generator: torch.Generator, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a random operator on a CPU generator, whether it takes one or not.

    Operators that take none (``rand_like``) run on the default generator with its state swapped.
    """
    keyword = _takes_keyword.get(func)
    if keyword is None:
        arguments = func._schema.arguments
        keyword = any(a.name == "generator" and a.kwarg_only for a in arguments)
        _takes_keyword[func] = keyword
    if keyword:
        return func(*args, **{**kwargs, "generator": generator})
    default = torch.default_generator

    def on_default() -> Any:
        before = default.get_state()
        default.set_state(generator.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            generator.set_state(default.get_state())
            default.set_state(before)

    return run_locked(_LENDING, on_default, None)


def isolate(patches: Patches, generator: torch.Generator) -> None:
    """Redirect torch's functions for seeds and states to ``generator`` on this thread.

    The generators of Python's ``random`` and of NumPy belong to the process: they start from a
    fixed seed while any thread is isolated, and get their states back afterwards.
    """
    calls: dict[str, Any] = {
        "manual_seed": lambda seed: generator.manual_seed(int(seed)),
        "seed": generator.seed,
        "initial_seed": generator.initial_seed,
        "get_rng_state": generator.get_state,
        "set_rng_state": generator.set_state,
    }
    for owner in (torch, torch.random):
        for name, call in calls.items():
            patches.bind(owner, name, in_place(call))
    patches.share(_seeded)


def _seeded(patches: Patches) -> None:
    state = random.getstate()
    patches.on_exit(lambda: random.setstate(state))
    random.seed(0)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        arrays = numpy.random.get_state()
        patches.on_exit(lambda: numpy.random.set_state(arrays))
        numpy.random.seed(0)
