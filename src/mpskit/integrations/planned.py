"""What the trainers' modules share: a plan's precision by their names, imports only when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypeAlias

from mpskit.backends.precisions import PRECISIONS
from mpskit.errors import MissingExtraError

if TYPE_CHECKING:
    from mpskit.plan.result import TrainingPlan

__all__ = ["AMP_NAMES", "Planned", "amp_name", "lightning_precision", "package"]

Planned: TypeAlias = "TrainingPlan"
"""A plan; this room stands below the plans and relies on their fields alone."""

_MIXED = "-mixed"
# What transformers and accelerate call mixed precision.
AMP_NAMES = tuple(name.removesuffix(_MIXED) for name, (_, cast) in PRECISIONS.items() if cast)


def package(name: str) -> Any:
    """Import a trainer's module.

    Raises:
        MissingExtraError: its package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        root = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the package is there and lacks something of its own
        raise MissingExtraError(
            f"{root} is not installed: pip install {root}", given=root
        ) from error


def amp_name(plan: Planned) -> str | None:
    """Return the mixed precision by transformers' and accelerate's name; None for none."""
    return plan.precision.removesuffix(_MIXED) if plan.precision.endswith(_MIXED) else None


def lightning_precision(plan: Planned) -> str:
    """Return Lightning's name; half-precision weights under float32 adapters stay ``32-true``."""
    name = plan.precision.removeprefix("fp")
    return name if name.endswith(_MIXED) else f"{name}-true"
