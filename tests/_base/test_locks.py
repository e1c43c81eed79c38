"""A lock that no interrupt leaves held, and the lines on which one may come."""

import threading

import pytest

from interrupting import interrupted_at_each_line
from mpskit._base.locks import run_locked


def test_it_runs_with_the_lock_held_or_says_that_it_is_busy():
    lock = threading.Lock()
    assert run_locked(lock, lock.locked, "busy") is True
    assert not lock.locked()
    with lock:
        assert run_locked(lock, lambda: "ran", "busy", timeout=0) == "busy"
    with pytest.raises(ZeroDivisionError):
        run_locked(lock, lambda: 1 / 0, None)
    assert not lock.locked()


def test_no_interrupt_keeps_it():
    lock = threading.Lock()
    lines = 0
    for _ in interrupted_at_each_line(lambda: run_locked(lock, lambda: None, None)):
        lines += 1
        assert not lock.locked()
    assert lines > 5
