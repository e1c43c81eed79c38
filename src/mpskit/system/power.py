"""Power: what slows a Mac down (:func:`power_state`), and keeping it awake (:func:`keep_awake`)."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mpskit._base.data import read_csv
from mpskit._base.log import log
from mpskit._base.values import Value
from mpskit.errors import ArgumentTypeError, PowerWarning

__all__ = ["Awake", "PowerState", "judge_power", "keep_awake", "power_state"]

# How long systemd-inhibit may take to ask logind for the lock, and a child to go when told to.
_START_S = 2.0
_STOP_S = 2.0
# Says that the lock is held, and then waits for the process in $1 to end, however it ends.
_WATCH = 'echo held; while kill -0 "$1" 2>/dev/null; do sleep 1; done'
_MODEL = re.compile(r"([A-Za-z]+)(\d+),(\d+)")
_BATTERIES = ("bat", "macsmc-battery")


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

    On a Mac it runs ``pmset`` twice, on Linux it reads ``/sys/class/power_supply``; elsewhere
    nothing is known.
    """
    from mpskit.host import detect_host
    from mpskit.system.machine import read_power

    return judge_power(read_power() or {}, model=detect_host().model)


def judge_power(texts: Mapping[str, str], *, model: str | None = None) -> PowerState:
    """Return the power state by facts alone.

    Args:
        texts: ``batt`` and ``live``, what ``pmset -g batt`` and ``pmset -g live`` print; or the
            files of ``/sys/class/power_supply`` (``BAT0/status``, ``AC/online``).
        model: a Mac's model identifier, such as ``Mac14,2``.
    """
    battery = texts.get("batt", "")
    percent = re.search(r"\b(\d{1,3})%", battery)
    on_battery = _from_pmset(battery) if battery else _from_sysfs(texts)
    return PowerState(
        on_battery=on_battery,
        battery_percent=min(int(percent[1]), 100) if percent else None,
        low_power_mode=_low_power_mode(texts.get("live", "")),
        fanless=_fanless(model),
    )


def _from_pmset(text: str) -> bool | None:
    source = re.search(r"drawing from '([^']*)'", text)
    return None if source is None else source[1] in ("Battery Power", "UPS Power")


def _from_sysfs(texts: Mapping[str, str]) -> bool | None:
    """A supply that is online settles it; else the battery says (a mouse's is not asked)."""
    if any(text == "1" for name, text in texts.items() if name.endswith("/online")):
        return False
    charge = [
        text.lower()
        for name, text in texts.items()
        if name.lower().startswith(_BATTERIES) and name.endswith("/status")
    ]
    return "discharging" in charge if charge else None


def _low_power_mode(text: str) -> bool | None:
    """Macs with a high-power mode call it ``powermode`` (1 is low, 2 is high), others do not."""
    mode = re.search(r"^\s*(?:low)?powermode\s+(\d)", text, re.MULTILINE)
    return None if mode is None else mode[1] == "1"


def _fanless(model: str | None) -> bool | None:
    """A model that the table could not know yet is neither one nor the other."""
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


class Awake:
    """Whether the machine is being kept awake, and by what.

    Attributes:
        how: ``caffeinate``, ``systemd-inhibit``, or ``none``.
        note: one sentence: what is done, or why nothing could be.
        pid: of the process that does it; None without one.
    """

    __slots__ = ("_process", "how", "note")

    def __init__(self, how: str, note: str, process: subprocess.Popen[str] | None = None) -> None:
        self.how = how
        self.note = note
        self._process = process

    @property
    def active(self) -> bool:
        """Whether it is being kept awake at this moment."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process that keeps the machine awake; None without one."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Let the machine sleep again, before the body ends; a second call does nothing."""
        if self._process is not None:
            _stop(self._process)

    def __repr__(self) -> str:
        return f"Awake(how={self.how!r}, active={self.active}, note={self.note!r})"


@contextlib.contextmanager
def keep_awake(why: str = "a long computation") -> Iterator[Awake]:
    """Keep the machine from going to sleep while the body runs; also as a decorator.

    On macOS ``caffeinate -i``, on Linux with logind ``systemd-inhibit``. Where there is neither,
    or it fails, the body runs all the same: the value says so (``how`` is ``none``, ``active`` is
    False, ``note`` says why), and so does a log line. The display may still sleep, and closing the
    lid of a notebook still puts it to sleep.

    The helping process ends with the ``with``, and within a second or two when this process ends
    in any other way, ``kill -9`` included.

    Args:
        why: shown by ``systemd-inhibit --list``.

    Raises:
        ArgumentTypeError: ``why`` is not a string.

    Warns:
        PowerWarning: the program is installed and cannot be started.
    """
    if not isinstance(why, str):
        raise ArgumentTypeError(f"why is a text, not {why!r}", given=why)
    awake = _start(why)
    try:
        yield awake
    finally:
        awake.stop()


class _Tool(NamedTuple):
    """A program that keeps the machine awake.

    Attributes:
        name: of the program.
        arguments: up to the process that it watches.
        announces: whether it prints a line once it holds the lock.
    """

    name: str
    arguments: tuple[str, ...]
    announces: bool


def _tools(why: str) -> tuple[_Tool, ...]:
    inhibit = ("--what=idle:sleep", "--mode=block", "--who=mpskit", f"--why={why}")
    return (
        _Tool("caffeinate", ("-i", "-w"), announces=False),
        _Tool("systemd-inhibit", (*inhibit, "sh", "-c", _WATCH, "sh"), announces=True),
    )


def _start(why: str) -> Awake:
    tool = next((tool for tool in _tools(why) if shutil.which(tool.name)), None)
    if tool is None:
        return _nothing("this system has neither caffeinate nor systemd-inhibit")
    try:
        process = _run(tool)
    except OSError as error:
        reason = f"{tool.name} could not be started: {error.strerror}"
        # It is installed and broken: unlike its absence, that is worth a look.
        warnings.warn(reason, PowerWarning, stacklevel=4)
        return _nothing(reason)
    if tool.announces and not _announced(process):
        _stop(process)
        return _nothing(f"{tool.name} could not get the lock (no logind, or it refused)")
    return Awake(tool.name, f"{tool.name} keeps this machine from sleeping", process)


def _run(tool: _Tool) -> subprocess.Popen[str]:
    """Start it in a session of its own: Ctrl-C is for the computation, which may go on after it."""
    return subprocess.Popen(
        (tool.name, *tool.arguments, str(os.getpid())),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def _nothing(reason: str) -> Awake:
    log.info("not kept awake", extra={"reason": reason})
    return Awake("none", f"nothing keeps this machine awake: {reason}")


def _announced(process: subprocess.Popen[str]) -> bool:
    """Wait for its line; a program that ends without one has failed."""
    if process.stdout is None:
        return False
    ready, _, _ = select.select([process.stdout], [], [], _START_S)
    return bool(ready) and process.stdout.readline().strip() == "held"


def _stop(process: subprocess.Popen[str]) -> None:
    """End it and what it started; it may be gone already."""
    with process:  # closes the pipe, and waits
        for order in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, order)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
