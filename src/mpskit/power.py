"""The documented home of power_state and judge_power, which live in mpskit.system.power."""

from mpskit.system.power import Awake, PowerState, judge_power, keep_awake, power_state

__all__ = ["Awake", "PowerState", "judge_power", "keep_awake", "power_state"]
