"""A plan as the arguments of Lightning's ``Trainer``, and as a callback."""

from __future__ import annotations

import functools
from typing import Any

from mpskit.integrations.planned import Planned, lightning_precision, package
from mpskit.integrations.watch import Watch, out_of_memory
from mpskit.memory.oom import is_oom

__all__ = ["callback", "to_lightning"]


def to_lightning(plan: Planned, **own: Any) -> dict[str, Any]:
    """Return arguments for ``lightning.Trainer``, the callback of the plan among them.

    Args:
        plan: a :class:`mpskit.TrainingPlan`.
        own: the caller's own, which win; callbacks are added to the plan's.

    Raises:
        MissingExtraError: lightning is not installed.
    """
    callbacks = own.pop("callbacks", None) or []
    mine = callbacks if isinstance(callbacks, list) else [callbacks]
    watched = any(isinstance(one, Watch) for one in mine)
    return {
        # A str: with an accelerator's instance, autocast is for CUDA (lightning 2.6).
        "accelerator": plan.device,
        "devices": plan.world_size,
        "precision": lightning_precision(plan),
        "accumulate_grad_batches": plan.accumulate,
        "max_epochs": plan.epochs,
        "callbacks": mine if watched else [callback(plan), *mine],
        **own,
    }


def callback(plan: Planned, **watched: Any) -> Any:
    """Return a Lightning ``Callback`` that watches the training of a plan.

    It does what transformers' does (:func:`mpskit.integrations.transformers.callback`); without
    ``with`` an out-of-memory error gets the next plan as a note.

    Raises:
        MissingExtraError: lightning is not installed.
    """
    return _callback_class()(plan, **watched)


@functools.cache
def _callback_class() -> Any:
    base: Any = package("lightning.pytorch").Callback

    class PlanCallback(Watch, base):  # type: ignore[misc]  # a base known at run time only
        """Watches a Trainer; the rest is in ``Watch``."""

        def on_fit_start(self, *_: Any) -> None:
            self.begin()

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.step()

        def on_fit_end(self, *_: Any) -> None:
            self.end()

        def on_exception(self, _: Any, __: Any, exception: BaseException) -> None:
            """Add a note: an error raised here would keep Lightning from putting things away."""
            self.end()
            if is_oom(exception):
                exception.add_note(str(out_of_memory(self.plan, exception)))

    return PlanCallback
