"""Keeping the machine awake during a long computation: :func:`keep_awake`."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from mpskit._base.arguments import wrong_type
from mpskit._base.log import log
from mpskit.errors import PowerWarning
from mpskit.system.process import Helper

__all__ = ["Awake", "keep_awake"]

# How long systemd-inhibit may take to ask logind for the lock.
_START_S = 2.0
# Prints that the lock is held, then waits until the process $1 has ended in any way.
_HELD = "held"
_WATCH = f'echo {_HELD}; while kill -0 "$1" 2>/dev/null; do sleep 1; done'


class Awake:
    """Whether the machine is being kept awake, and by what.

    Attributes:
        how: the program: ``caffeinate``, ``systemd-inhibit``, or ``none``.
        note: what is done, or why nothing could be, in one sentence.
        pid: the helper's process id; None without one.
    """

    __slots__ = ("_helper", "how", "note")

    def __init__(self, how: str, note: str, helper: Helper | None = None) -> None:
        self.how = how
        self.note = note
        self._helper = helper

    @property
    def active(self) -> bool:
        """Whether the machine is being kept awake now."""
        return self._helper is not None and self._helper.running

    @property
    def pid(self) -> int | None:
        """The helper's process id; None without one."""
        return self._helper.pid if self._helper is not None else None

    def stop(self) -> None:
        """Let the machine sleep again before the body ends; a second call does nothing."""
        if self._helper is not None:
            self._helper.stop()

    def __repr__(self) -> str:
        return f"Awake(how={self.how!r}, active={self.active}, note={self.note!r})"


@contextlib.contextmanager
def keep_awake(why: str = "a long computation") -> Iterator[Awake]:
    """Keep the machine from going to sleep while the body runs; also as a decorator.

    It runs ``caffeinate -i`` on macOS and ``systemd-inhibit`` on Linux with logind. Without either,
    or if it fails, the body still runs; the value says so (``how`` is ``none``, ``active`` is
    False, ``note`` says why), and so does a log line. The display may still sleep, and closing a
    notebook's lid still suspends it.

    The helper process ends with the ``with`` block, and within a second or two if this process ends
    in any other way, ``kill -9`` included.

    Args:
        why: the reason that ``systemd-inhibit --list`` shows.

    Raises:
        ArgumentTypeError: ``why`` is not a str.

    Warns:
        PowerWarning: the program is installed but cannot be started.
    """
    if not isinstance(why, str):
        raise wrong_type("why", "a str", why)
    started: list[Helper] = []
    try:
        try:
            yield _start(why, started)
        finally:
            _stop(started)
    finally:
        # An interrupt may have cut the line above short.
        _stop(started)


def _stop(started: list[Helper]) -> None:
    while started:
        started[-1].stop()
        started.pop()


class _Tool(NamedTuple):
    """A program that keeps the machine awake.

    Attributes:
        name: the program.
        arguments: those before the pid that it watches.
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


def _start(why: str, started: list[Helper]) -> Awake:
    """Start the program that keeps this system awake; ``started`` gets its helper."""
    tool = next((tool for tool in _tools(why) if shutil.which(tool.name)), None)
    if tool is None:
        return _nothing("this system has neither caffeinate nor systemd-inhibit")
    try:
        helper = Helper((tool.name, *tool.arguments, str(os.getpid())), started)
    except OSError as error:
        reason = f"{tool.name} could not be started: {error.strerror}"
        # Unlike a missing program, an installed one that fails deserves a warning.
        warnings.warn(reason, PowerWarning, stacklevel=4)
        return _nothing(reason)
    if tool.announces and not helper.says(_HELD, within=_START_S):
        helper.stop()
        return _nothing(f"{tool.name} could not get the lock (no logind, or it refused)")
    return Awake(tool.name, f"{tool.name} keeps this machine from sleeping", helper)


def _nothing(reason: str) -> Awake:
    log.info("not kept awake", extra={"reason": reason})
    return Awake("none", f"nothing keeps this machine awake: {reason}")
