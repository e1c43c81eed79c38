"""Power: what slows a Mac down (:func:`power_state`), and keeping it awake (:func:`keep_awake`)."""

from mpskit.host.power import PowerState, judge_power, power_state
from mpskit.training.keep_awake import Awake, keep_awake

__all__ = ["Awake", "PowerState", "judge_power", "keep_awake", "power_state"]
