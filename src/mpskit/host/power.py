"""What slows a machine down over hours: battery, Low Power Mode, no fan.

:func:`power_state` asks this machine, :func:`judge_power` is the rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mpskit._base.data import read_csv
from mpskit._base.values import Value

__all__ = ["PowerState", "judge_power", "power_state"]

_MODEL = re.compile(r"([A-Za-z]+)(\d+),(\d+)")


class PowerState(Value):
    """What the machine's power supply means for a long computation; None where it cannot be told.

    Attributes:
        on_battery: it runs from its battery now.
        battery_percent: charge, 0 to 100; None without a battery.
        low_power_mode: macOS's Low Power Mode is on, which lowers the clocks of CPU and GPU.
        fanless: it has no fan, so it slows down under a load of minutes.
    """

    on_battery: bool | None = None
    battery_percent: int | None = None
    low_power_mode: bool | None = None
    fanless: bool | None = None

    @property
    def concerns(self) -> tuple[str, ...]:
        """What makes this machine slower than it could be, and what to do; empty if nothing is."""
        found = {
            "Low Power Mode is on: CPU and GPU run slower; turn it off in System Settings, "
            "Battery.": self.low_power_mode,
            "It runs from the battery: macOS may lower the clocks; plug it in.": self.on_battery,
            "It has no fan: after some minutes of full load it slows down; time a short run "
            "twice before trusting an estimate.": self.fanless,
        }
        return tuple(text for text, holds in found.items() if holds)

    def __str__(self) -> str:
        charge = f" ({self.battery_percent}%)" if self.battery_percent is not None else ""
        parts = (
            _word(self.on_battery, "on battery", "on mains power", "power source unknown") + charge,
            _word(self.low_power_mode, "Low Power Mode on", "Low Power Mode off", ""),
            _word(self.fanless, "no fan", "cooled by a fan", ""),
        )
        return ", ".join(part for part in parts if part)


def _word(value: bool | None, yes: str, no: str, unknown: str) -> str:
    return unknown if value is None else yes if value else no


def power_state() -> PowerState:
    """Return the machine's power state; never raises.

    The battery is psutil's reading; on a Mac ``pmset`` tells Low Power Mode.
    """
    from mpskit.host import detect_host
    from mpskit.system.power import read_power

    return judge_power(read_power() or {}, model=detect_host().model)


def judge_power(texts: Mapping[str, str], *, model: str | None = None) -> PowerState:
    """Return the power state by facts alone.

    Args:
        texts: what is known of ``percent`` (the battery's charge, ``"85"``), ``plugged`` (``"1"``
            or ``"0"``) and ``live`` (what ``pmset -g live`` prints).
        model: a Mac's model identifier, such as ``Mac14,2``.
    """
    percent = re.fullmatch(r"\d{1,3}", texts.get("percent", ""), re.ASCII)
    return PowerState(
        on_battery={"1": False, "0": True}.get(texts.get("plugged", "")),
        battery_percent=min(int(percent[0]), 100) if percent else None,
        low_power_mode=_low_power_mode(texts.get("live", "")),
        fanless=_fanless(model),
    )


def _low_power_mode(text: str) -> bool | None:
    """Macs with a high-power mode call it ``powermode`` (1 is low, 2 is high), others do not."""
    mode = re.search(r"^\s*(?:low)?powermode\s+(\d)", text, re.MULTILINE)
    return None if mode is None else mode[1] == "1"


def _fanless(model: str | None) -> bool | None:
    """Return whether a Mac has no fan; None for a model newer than the table."""
    match = _MODEL.fullmatch(model or "")
    if match is None:
        return None
    listed = [_MODEL.fullmatch(row["model"]) for row in read_csv("fanless_macs.csv")]
    known = [(row[1], int(row[2]), int(row[3])) for row in listed if row]
    family, generation = match[1], int(match[2])
    if (family, generation, int(match[3])) in known:
        return True
    newest = max(number for name, number, _ in known if name == "Mac")
    return None if family == "Mac" and generation > newest else False
