"""A backend that exists in figures only, put in the place of the one that asks torch."""

from __future__ import annotations

import json
import sys
import threading

import psutil
import pytest
import torch

from mpskit import CacheKeeper, empty_cache_scope
from mpskit.backends import memory
from mpskit.backends.kinds import kind_of
from mpskit.backends.memory import Backend
from mpskit.memory import cache

GIB = 2**30
OOM = "CUDA out of memory. Tried to allocate 1.00 GiB."


class FakeBackend(Backend):
    """Says what a test wants it to say, and counts the clears.

    A figure is a value, or a function without arguments that returns or raises it.
    """

    def __init__(self, kind: str = "mps") -> None:
        super().__init__(kind, kind_of(kind))
        self.initialized: bool | None = True
        self.reserved = 4 * GIB
        self.allocated = GIB
        self.recommended = 8 * GIB
        self.max_buffer = self.peak = self.total = self.unused = self.fraction = None
        self.caps: list[tuple[str, float]] = []
        self.ratios: list[float] = []
        self.refuses_caps: bool | Exception = False
        self.clears = 0
        self.error: BaseException | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.gate = threading.Event()
        self.gate.set()

    def empty_cache(self) -> None:
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

    def _figure(self, name: str):
        value = getattr(self, name)
        return value() if callable(value) else value

    def is_initialized(self):
        return self.initialized

    def allocated_bytes(self):
        return self._figure("allocated")

    def reserved_bytes(self):
        return self._figure("reserved")

    def peak_bytes(self):
        return self._figure("peak")

    def recommended_bytes(self):
        return self._figure("recommended")

    def max_buffer_bytes(self):
        return self._figure("max_buffer")

    def total_bytes(self):
        return self._figure("total")

    def free_bytes(self):
        return self._figure("unused")

    def memory_fraction(self):
        return self._figure("fraction")

    def set_memory_fraction(self, fraction: float) -> bool:
        if isinstance(self.refuses_caps, Exception):
            raise self.refuses_caps
        self.caps.append((str(self.device), fraction))
        self.ratios.append(fraction)
        return not self.refuses_caps


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeBackend) -> FakeBackend:
    """Let the fake answer for its kind of device, as the only accelerator of this torch."""
    assert torch.__version__  # without torch in the process nothing is ever in use
    api, asks = fake.kind.api, memory.APIS[fake.kind.api]

    def answer(device, kind):
        if kind.name != fake.kind.name:
            return asks(device, kind)
        fake.device = device
        return fake

    monkeypatch.setitem(memory.APIS, api, answer)
    monkeypatch.setattr(cache, "present_kinds", lambda: (fake.kind.name,))
    monkeypatch.setattr(cache, "_seen", set())
    return fake


def hammer(fake: FakeBackend, turns: int, errors: list, raised: list) -> None:
    """Clear in every way, one time in three with an error, so many times."""
    scope, keeper = empty_cache_scope(collect=False), CacheKeeper()
    for turn in range(1, turns + 1):
        fake.reserved = 4 * GIB
        try:
            with scope, empty_cache_scope(above="1GiB", collect=turn % 50 == 0):
                if turn % 3 == 0:
                    raised.append(turn)
                    raise RuntimeError(f"turn {turn}" if turn % 60 else OOM)
            keeper.step()
        except RuntimeError as error:
            errors.append(error)


def hammer_in_threads(turns: int) -> tuple[int, int, int]:
    """Hammer from eight threads; return errors seen, errors raised, most clears at one time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake = install(monkeypatch, FakeBackend())
        errors: list = []
        raised: list = []
        threads = [
            threading.Thread(target=hammer, args=(fake, turns, errors, raised)) for _ in range(8)
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
    results = hammer_in_threads(int(sys.argv[1]))
    print(json.dumps([*results, before == _open_things()]))
