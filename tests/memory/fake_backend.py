"""A backend that exists in figures only, put in the place of the facade over torch."""

from __future__ import annotations

import json
import sys
import threading
import time

import psutil
import pytest
import torch

from mpskit import CacheKeeper, empty_cache_scope
from mpskit.backends import facade as _torch
from mpskit.memory import cache

GIB = 2**30
OOM = "CUDA out of memory. Tried to allocate 1.00 GiB."


class FakeBackend:
    """Says what a test wants it to say, and counts the clears."""

    def __init__(self, kind: str = "mps") -> None:
        self.kind = kind
        self.initialized: bool | None = True
        self.reserved: int | None = 4 * GIB
        self.allocated: int | None = GIB
        self.recommended: int | None = 8 * GIB
        self.max_buffer: int | None = None
        self.clears = 0
        self.error: BaseException | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.gate = threading.Event()
        self.gate.set()

    def empty_cache(self, device: object) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.gate.wait(10)
            if self.error is not None:
                raise self.error
            self.clears += 1
            self.reserved = self.allocated
        finally:
            self.at_once -= 1

    def asked(self, device: object) -> bool:
        return str(device).partition(":")[0] == self.kind


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeBackend) -> FakeBackend:
    """Put the fake behind ``mpskit.backends.facade``, as the only accelerator of this torch."""
    assert torch.__version__  # without torch in the process nothing is ever in use

    def figure(name: str):
        return lambda device: getattr(fake, name) if fake.asked(device) else None

    monkeypatch.setattr(cache, "_accelerators", lambda: (fake.kind,))
    monkeypatch.setattr(cache, "_seen", set())
    monkeypatch.setattr(
        _torch, "is_initialized", lambda device: fake.initialized if fake.asked(device) else False
    )
    monkeypatch.setattr(_torch, "empty_cache", fake.empty_cache)
    for function, name in (
        ("reserved_bytes", "reserved"),
        ("allocated_bytes", "allocated"),
        ("recommended_bytes", "recommended"),
        ("max_buffer_bytes", "max_buffer"),
    ):
        monkeypatch.setattr(_torch, function, figure(name))
    monkeypatch.setattr(_torch, "total_bytes", lambda device: None)
    return fake


def hammer(fake: FakeBackend, seconds: float, errors: list, raised: list) -> None:
    """Clear in every way, one time in three with an error, until the time is over."""
    end, scope, keeper = time.monotonic() + seconds, empty_cache_scope(collect=False), CacheKeeper()
    turn = 0
    while time.monotonic() < end:
        turn += 1
        fake.reserved = 4 * GIB
        try:
            with scope, empty_cache_scope(above="1GiB", collect=turn % 50 == 0):
                if turn % 3 == 0:
                    raised.append(turn)
                    raise RuntimeError(f"turn {turn}" if turn % 60 else OOM)
            keeper.step()
        except RuntimeError as error:
            errors.append(error)


def hammer_in_threads(seconds: float) -> tuple[int, int, int]:
    """Hammer from eight threads; return errors seen, errors raised, most clears at one time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake = install(monkeypatch, FakeBackend())
        errors: list = []
        raised: list = []
        threads = [
            threading.Thread(target=hammer, args=(fake, seconds, errors, raised)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(errors), len(raised), fake.most_at_once


def _open_things() -> tuple[int, int, int]:
    me = psutil.Process()
    return threading.active_count(), me.num_fds(), len(me.children())


if __name__ == "__main__":
    before = _open_things()
    results = hammer_in_threads(float(sys.argv[1]))
    print(json.dumps([*results, before == _open_things()]))
