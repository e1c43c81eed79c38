"""Runs a user's command to its end, passes signals on, and samples its processes.

Each signal reaches the command exactly once: SIGTERM and SIGHUP are passed on. A first Ctrl-C lets
it end in its own way, a second sends SIGTERM, a third kills it with its children. On a terminal the
command gets Ctrl-C from there; elsewhere it has a process group of its own, so a signal to this
process's group does not reach it twice. Nothing but the command and its descendants is ever
signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import psutil

from mpskit.system.process import footprint_bytes

__all__ = ["Ended", "exit_code", "run_command", "tree_footprint", "watch_command"]

_GRACE_S = 5.0
_PASSED_ON = ("SIGTERM", "SIGHUP")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        returncode: as :class:`subprocess.Popen` gives it: negative if a signal ended it.
        seconds: how long it ran.
    """

    returncode: int
    seconds: float


def run_command(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command until it ends and return its return code, negative if a signal ended it.

    Args:
        command: the program and its arguments; input and output are this process's own.
        environ: all of its environment.

    Raises:
        OSError: the program cannot be started.
    """
    with _running(command, environ) as child:
        return child.wait()


def watch_command(
    command: Sequence[str], interval: float, look: Callable[[int, float], None]
) -> Ended:
    """Run a command and sample it at an interval until it ends.

    Args:
        command: the program and its arguments; input and output are this process's own.
        interval: seconds between two samples.
        look: called with the process's number and the seconds since its start.

    Raises:
        OSError: the program cannot be started.
    """
    started = time.monotonic()
    with _running(command) as child:
        while child.poll() is None:
            look(child.pid, time.monotonic() - started)
            _wait(child, interval)
    return Ended(child.returncode, time.monotonic() - started)


@contextlib.contextmanager
def _running(
    command: Sequence[str], environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, pass signals on to it during the block, and make sure that it ends."""
    child: list[subprocess.Popen[bytes]] = []
    from_terminal = _from_terminal()
    with _signals(child, from_terminal=from_terminal):
        group = None if from_terminal else 0
        child.append(subprocess.Popen(command, env=environ, process_group=group))
        try:
            yield child[0]
        finally:
            _end(child[0])


def exit_code(returncode: int) -> int:
    """Return the exit code a shell gives: 128 and the signal's number if one ended it."""
    return returncode if returncode >= 0 else 128 - returncode


def tree_footprint(pid: int) -> int | None:
    """Return the footprints of a process and its descendants together; None if it has ended."""
    sizes = [footprint_bytes(member.pid) for member in _family(pid)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


@contextlib.contextmanager
def _signals(child: list[subprocess.Popen[bytes]], *, from_terminal: bool) -> Iterator[None]:
    """Pass signals on to the command while it runs; only the main thread can set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {signal.SIGINT: _interrupting(child, from_terminal)}
    for name in _PASSED_ON:
        if hasattr(signal, name):
            handlers[getattr(signal, name)] = _passing(child)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _passing(child: list[subprocess.Popen[bytes]]) -> Callable[[int, FrameType | None], None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in child:
            process.send_signal(number)

    return pass_on


def _interrupting(
    child: list[subprocess.Popen[bytes]], from_terminal: bool
) -> Callable[[int, FrameType | None], None]:
    presses = 0

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        for process in child:
            if presses == 1 and not from_terminal:
                process.send_signal(number)
            elif presses == 2:
                process.terminate()
            elif presses > 2:
                _kill(process.pid)

    return interrupt


def _from_terminal() -> bool:
    """Return whether the terminal sends Ctrl-C to the command too."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):
        return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """Make sure that the command has ended."""
    if child.poll() is not None:
        return
    child.terminate()
    _wait(child, _GRACE_S)
    if child.poll() is None:
        _kill(child.pid)
        child.wait()


def _kill(pid: int) -> None:
    for member in reversed(_family(pid)):
        with contextlib.suppress(psutil.Error):
            member.kill()
