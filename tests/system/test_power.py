"""What the system says about its power supply, with stand-ins for psutil and pmset."""

from typing import NamedTuple

import psutil
import pytest

from mpskit.host import Readings
from mpskit.system import power
from mpskit.system.machine import replace_readings
from mpskit.system.power import read_power


class Battery(NamedTuple):
    percent: float
    secsleft: int
    power_plugged: bool | None


@pytest.mark.parametrize(
    ("system", "battery", "texts"),
    [
        ("Linux", Battery(84.6, 100, False), {"percent": "85", "plugged": "0"}),
        ("Linux", Battery(100, -2, True), {"percent": "100", "plugged": "1"}),
        ("Linux", Battery(50, -1, None), {"percent": "50"}),
        ("Linux", None, None),
        ("Darwin", None, {"plugged": "1", "live": "lowpowermode 1"}),
        (
            "Darwin",
            Battery(3, 60, False),
            {"percent": "3", "plugged": "0", "live": "lowpowermode 1"},
        ),
    ],
)
def test_battery_and_low_power_mode(monkeypatch, system, battery, texts):
    monkeypatch.setattr(power.platform, "system", lambda: system)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(power, "output_of", lambda *_, **__: "lowpowermode 1")
    assert read_power() == texts


def test_a_battery_that_cannot_be_read_is_unknown(monkeypatch):
    def fail():
        raise RuntimeError("no such sensor")

    monkeypatch.setattr(psutil, "sensors_battery", fail, raising=False)
    monkeypatch.setattr(power, "output_of", lambda *_, **__: None)
    assert read_power() is None


def test_replaced_readings_are_honoured():
    previous = replace_readings(Readings(power={"live": "lowpowermode 1"}))
    try:
        assert read_power() == {"live": "lowpowermode 1"}
    finally:
        replace_readings(previous)
