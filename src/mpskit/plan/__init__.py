"""Settings that fit: from a model and a machine to a plan of training or of inference."""

from __future__ import annotations

from mpskit._base.lazy import resolver

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mpskit.plan.inference import plan_inference
    from mpskit.plan.result import InferencePlan, TrainingPlan
    from mpskit.plan.training import plan_training

__all__ = ["InferencePlan", "TrainingPlan", "plan_inference", "plan_training"]

_HOMES = {
    "InferencePlan": "mpskit.plan.result",
    "TrainingPlan": "mpskit.plan.result",
    "plan_inference": "mpskit.plan.inference",
    "plan_training": "mpskit.plan.training",
}

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _HOMES)
