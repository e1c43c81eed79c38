"""A plan as the arguments of accelerate's ``Accelerator``."""

from __future__ import annotations

from typing import Any

from mpskit.integrations.planned import Planned, amp_name

__all__ = ["to_accelerate"]


def to_accelerate(plan: Planned, **own: Any) -> dict[str, Any]:
    """Return arguments for ``Accelerator``; batch size and loader are in ``plan.loader``.

    Args:
        plan: a :class:`mpskit.TrainingPlan`.
        own: the caller's own, which win.
    """
    return {
        "cpu": plan.device == "cpu",
        "mixed_precision": amp_name(plan) or "no",
        "gradient_accumulation_steps": plan.accumulate,
        **own,
    }
