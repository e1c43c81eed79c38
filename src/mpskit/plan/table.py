"""The plans of one model on many machines: which Mac it needs. Each setting is estimated once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import wrong_type
from mpskit._base.sizes import format_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentError
from mpskit.plan.jobs import Job, Model, is_config
from mpskit.plan.places import find_place
from mpskit.plan.result import TrainingPlan
from mpskit.plan.training import plan_job, read_request, training_job

if TYPE_CHECKING:
    from mpskit.host.named import MachineLike

__all__ = ["COLUMNS", "PlanTable", "plan_machines"]

COLUMNS = ("machine", "usable", "verdict", "needs", "settings", "batch", "tokens", "a step")


class PlanTable(Value):
    """Plans of one model, one for each machine.

    Attributes:
        model: its name.
        plans: from the machine that gives least memory to the one that gives most.
    """

    model: str
    plans: tuple[TrainingPlan, ...]

    @property
    def smallest(self) -> TrainingPlan | None:
        """The plan on the machine with the least memory that it fits on; None for none."""
        return next((plan for plan in self.plans if plan.verdict == "fits"), None)

    def __bool__(self) -> bool:
        return any(self.plans)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of a table under :data:`COLUMNS`."""
        return [
            (
                plan.machine,
                format_bytes(plan.usable_bytes),
                plan.verdict,
                format_bytes(plan.needed_bytes),
                _settings(plan),
                f"{plan.batch_size} x {plan.accumulate}",
                str(plan.seq_len or ""),
                "" if plan.step is None else str(plan.step.step),
            )
            for plan in self.plans
        ]

    def plot(self, path: str | Path) -> Path:
        """Draw a bar for each machine, and what it gives as a mark.

        Args:
            path: the file; its suffix chooses the format.

        Raises:
            MissingExtraError: matplotlib is not installed (``pip install 'mpskit[plot]'``).
            ArgumentError: the file cannot be written.
        """
        from mpskit.plan.plot import plot_table

        return plot_table(self, Path(path))

    def __str__(self) -> str:
        return "\n".join("  ".join(row) for row in [COLUMNS, *self.rows()])


def _settings(plan: TrainingPlan) -> str:
    return next((one.words for one in plan.compared if one.chosen), plan.precision)


def plan_machines(
    model_or_config: Model, machines: Iterable[MachineLike], *, batch: Any = None, **asked: Any
) -> PlanTable:
    """Return the plan of a model on each machine.

    Args:
        model_or_config: as for :func:`mpskit.plan_training`.
        machines: their names or descriptions.
        batch: as for :func:`mpskit.plan_training`.
        asked: its other arguments but ``device`` and ``budget``, which are each machine's own.

    Raises:
        ArgumentError: as for :func:`mpskit.plan_training`, or no machine at all.
        ArgumentTypeError: an argument of the wrong type, such as one name for all machines.
        UnknownMachineError: no machine has one of the names.
    """
    if isinstance(machines, str):
        raise wrong_type("machines", "several names such as ['m1-16gb', 'T4']", machines)
    request = read_request(batch=batch if is_config(model_or_config) else None, **asked)
    jobs: dict[str, Job] = {}
    plans = []
    for machine in machines:
        place = find_place(machine)
        if place.device not in jobs:
            jobs[place.device] = training_job(model_or_config, batch, place.device, request)
        plans.append(plan_job(jobs[place.device], place, request, advise=False))
    if not plans:
        raise ArgumentError("name at least one machine", given=machines)
    plans.sort(key=lambda plan: plan.usable_bytes)
    return PlanTable(model=plans[0].model, plans=tuple(plans))
