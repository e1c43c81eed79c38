"""A plan's adapters as peft's ``LoraConfig``."""

from __future__ import annotations

from typing import Any

from mpskit.errors import ArgumentError
from mpskit.integrations.planned import Planned, package

__all__ = ["to_peft"]


def to_peft(plan: Planned, **own: Any) -> Any:
    """Return the ``LoraConfig`` of a plan.

    peft keeps adapters over half-precision weights in float32, as the plan's figures have them.

    Args:
        plan: a :class:`mpskit.TrainingPlan` with ``lora``.
        own: more arguments of ``LoraConfig``, which win, such as ``task_type="SEQ_CLS"``.

    Raises:
        ArgumentError: the plan trains every weight.
        MissingExtraError: peft is not installed.
    """
    if plan.lora is None:
        raise ArgumentError(
            "this plan trains every weight and has no adapters: plan with method='lora'",
            given=plan,
        )
    planned = {
        "r": plan.lora.rank,
        "lora_alpha": plan.lora.alpha,
        "lora_dropout": plan.lora.dropout,
        "target_modules": list(plan.lora.targets),
        "task_type": plan.lora.task,
    }
    return package("peft").LoraConfig(**(planned | own))
