"""power_state by facts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.host import Readings
from mpskit.power import judge_power, power_state
from mpskit.system.machine import replace_readings

LIVE = """System-wide power settings:
 SleepDisabled          0
Currently in use:
 standby              1
 {name}         {value}
 hibernatefile        /var/vm/sleepimage
"""
BATTERY = {"percent": "85", "plugged": "0"}


@pytest.mark.parametrize(
    ("texts", "on_battery", "percent"),
    [
        (BATTERY, True, 85),
        ({"percent": "100", "plugged": "1"}, False, 100),
        ({"plugged": "1"}, False, None),
        ({"percent": "104"}, None, 100),
        ({"percent": "full", "plugged": "yes"}, None, None),
        ({}, None, None),
    ],
)
def test_the_power_source(texts, on_battery, percent):
    found = judge_power(texts)
    assert (found.on_battery, found.battery_percent) == (on_battery, percent)


@pytest.mark.parametrize(
    ("name", "value", "low"),
    [("lowpowermode", 1, True), ("lowpowermode", 0, False), ("powermode", 0, False),
     ("powermode", 1, True), ("powermode", 2, False), ("other", 1, None)],
)  # fmt: skip
def test_low_power_mode_under_both_its_names(name, value, low):
    assert judge_power({"live": LIVE.format(name=name, value=value)}).low_power_mode is low


@pytest.mark.parametrize(
    ("model", "fanless"),
    [
        ("MacBookAir10,1", True),
        ("Mac14,2", True),
        ("Mac17,5", True),
        ("MacBook10,1", True),
        ("MacBookAir9,1", False),
        ("MacBookPro18,1", False),
        ("Mac14,3", False),
        ("Mac19,1", None),  # newer than the table
        ("VirtualMac", None),
        (None, None),
    ],
)
def test_fanless_macs(model, fanless):
    assert judge_power({}, model=model).fanless is fanless


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=40)), st.text(max_size=20))
def test_no_text_makes_it_fail(texts, model):
    assert str(judge_power(texts, model=model))


@given(st.text(max_size=60))
def test_no_output_of_pmset_makes_it_fail(text):
    found = judge_power({"percent": text, "live": text})
    assert found.battery_percent is None or 0 <= found.battery_percent <= 100


def test_the_sentence_and_the_concerns():
    texts = BATTERY | {"live": LIVE.format(name="lowpowermode", value=1)}
    found = judge_power(texts, model="Mac14,2")
    assert str(found) == "on battery (85%), Low Power Mode on, no fan"
    assert len(found.concerns) == 3
    assert "turn it off" in found.concerns[0]
    calm = judge_power({"plugged": "1"}, model="Mac14,3")
    assert str(calm) == "on mains power, cooled by a fan"
    assert calm.concerns == ()


def test_this_machine_answers():
    assert str(power_state())


def test_readings_in_place_of_the_machines_are_used():
    readings = Readings(
        system="Darwin", machine="arm64", sysctl={"hw.model": "Mac14,2"}, power=BATTERY
    )
    previous = replace_readings(readings)
    try:
        found = power_state()
    finally:
        replace_readings(previous)
    assert (found.on_battery, found.fanless) == (True, True)
