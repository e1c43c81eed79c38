"""empty_cache, empty_cache_scope and CacheKeeper against a backend made of figures."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time

import fake_backend
import pytest
import torch
from fake_backend import GIB, FakeBackend, hammer_in_threads

from interrupting import interrupted_at_each_line
from mpskit import CacheKeeper, empty_cache, empty_cache_scope
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.memory import cache

OOM = "CUDA out of memory. Tried to allocate 1.00 GiB."

# --- empty_cache ------------------------------------------------------------------------------


def test_the_report_says_before_after_and_freed(mps: FakeBackend) -> None:
    report = empty_cache()
    assert (report.before_bytes, report.after_bytes) == (4 * GIB, GIB)
    assert report.freed_bytes == 3 * GIB
    assert report.devices == ("mps",)
    assert "3.00 GiB freed" in str(report)
    assert '"freed_bytes":3221225472' in report.model_dump_json()


def test_the_graph_cache_is_told_from_torch_2_13(mps, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, cleared in (("2.12.1", False), ("2.13.0", True), ("2.15.0", True)):
        monkeypatch.setattr(torch, "__version__", version)
        assert empty_cache().graph_cache is cleared
        assert ("graph cache" in str(empty_cache())) is cleared


def test_figures_that_are_lacking_are_none(mps: FakeBackend) -> None:
    mps.reserved = mps.allocated = None
    report = empty_cache("mps")
    assert (report.before_bytes, report.after_bytes, report.freed_bytes) == (None, None, 0)
    assert mps.clears == 1


def test_what_is_not_in_use_is_left_alone(mps: FakeBackend) -> None:
    mps.initialized = False
    for device in (None, "mps", "cpu", "cuda:0", torch.device("mps")):
        assert empty_cache(device).devices == ()
    assert mps.clears == 0
    assert "not in use" in str(empty_cache("mps"))


def test_the_device_in_use_counts_not_what_the_machine_has(mps: FakeBackend) -> None:
    empty_cache("cpu")
    assert mps.clears == 0
    empty_cache("mps")
    assert mps.clears == 1


class TestWhereItCannotBeAsked:
    """MPS before torch 2.13: ``is_initialized`` is None."""

    @pytest.fixture(autouse=True)
    def _unknown(self, mps: FakeBackend) -> None:
        mps.initialized = None

    def test_it_is_left_alone_without_a_sign_of_use(self, mps: FakeBackend) -> None:
        assert empty_cache().devices == ()
        assert mps.clears == 0

    def test_a_device_that_is_named_is_cleared_and_remembered(self, mps: FakeBackend) -> None:
        assert empty_cache("mps").devices == ("mps",)
        assert empty_cache().devices == ("mps",)

    def test_torch_s_default_device_is_in_use(self, mps, monkeypatch) -> None:
        default = lambda: torch.device("mps")
        monkeypatch.setattr(torch, "get_default_device", default, raising=False)
        assert empty_cache().devices == ("mps",)

    def test_a_live_tensor_is_a_sign_of_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The fake answers for "meta", whose tensors can be made anywhere.
        fake_backend.install(monkeypatch, FakeBackend("meta")).initialized = None
        kept = torch.empty(3, device="meta")
        assert cache._is_in_use("meta", look=False) is False
        assert cache._is_in_use("meta", look=True) is True
        del kept
        assert cache._is_in_use("meta", look=False) is True


def test_a_torch_before_2_6_has_no_accelerator_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accelerator", "get_default_device", "xpu"):
        monkeypatch.delattr(torch, name, raising=False)
    monkeypatch.setattr(torch, "__version__", "2.2.2")
    assert cache.present_kinds() == ("cuda", "mps", "xpu")
    assert empty_cache().devices == ()
    with empty_cache_scope(before=True), empty_cache_scope("cuda", above="1GiB"):
        pass
    assert CacheKeeper("mps", every=1).step() is None


def test_without_torch_there_is_nothing_to_do_and_torch_stays_out() -> None:
    code = (
        "import sys\n"
        "from mpskit import empty_cache, empty_cache_scope, CacheKeeper\n"
        "with empty_cache_scope(before=True): pass\n"
        "with empty_cache_scope('mps', above='1GiB'): pass\n"
        "CacheKeeper('cuda:1', every=1).step()\n"
        "assert empty_cache().devices == ()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


def test_one_clear_at_a_time_and_the_second_caller_leaves(mps: FakeBackend) -> None:
    mps.gate.clear()
    first = threading.Thread(target=empty_cache)
    first.start()
    while not mps.at_once:
        time.sleep(0.001)
    report = empty_cache()
    assert report.devices == ()
    assert "clear was running" in str(report)
    mps.gate.set()
    first.join()
    assert mps.clears == 1
    assert empty_cache().devices == ("mps",)


def test_after_an_oom_the_second_caller_waits(mps: FakeBackend) -> None:
    mps.gate.clear()
    first = threading.Thread(target=empty_cache)
    first.start()
    while not mps.at_once:
        time.sleep(0.001)
    threading.Timer(0.05, mps.gate.set).start()
    with pytest.raises(RuntimeError, match="CUDA"), empty_cache_scope():
        raise RuntimeError(OOM)
    first.join()
    assert mps.clears == 2


def test_a_failed_clear_leaves_the_lock_free(mps: FakeBackend) -> None:
    mps.error = RuntimeError("command buffer")
    with pytest.raises(RuntimeError, match="command buffer"):
        empty_cache()
    mps.error = None
    assert empty_cache().devices == ("mps",)


# --- empty_cache_scope ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "clears"), [(False, True, 1), (True, False, 1), (True, True, 2), (0, 0, 0)]
)
def test_before_and_after(mps: FakeBackend, before, after, clears: int) -> None:
    with empty_cache_scope(before=before, after=after) as scope:
        assert mps.clears == int(before)
    assert mps.clears == clears
    assert (scope.report is not None) == bool(clears)


@pytest.mark.parametrize(
    ("above", "clears"),
    [
        (3 * GIB, 1),  # 4 held, 1 of it live: exactly 3 could come back
        (3 * GIB + 1, 0),
        ("2GiB", 1),
        ("4GiB", 0),
        ("37%", 1),  # of the 8 recommended
        ("38%", 0),
        (0.25, 1),
        (0, 1),
    ],
)
def test_only_above_a_threshold(mps: FakeBackend, above, clears: int) -> None:
    with empty_cache_scope(above=above):
        pass
    assert mps.clears == clears


def test_an_unknown_figure_is_not_above(mps: FakeBackend) -> None:
    mps.reserved = None
    with empty_cache_scope(above="1 byte"):
        pass
    assert mps.clears == 0


def test_after_an_oom_the_threshold_does_not_count(mps: FakeBackend) -> None:
    with pytest.raises(RuntimeError, match="CUDA"), empty_cache_scope(above="99GiB", collect=False):
        raise RuntimeError(OOM)
    assert mps.clears == 1


@pytest.mark.parametrize("error", [RuntimeError(OOM), ValueError("mine"), KeyboardInterrupt()])
def test_the_body_s_error_wins_over_the_cleanup_s(mps: FakeBackend, error: BaseException) -> None:
    mps.error = RuntimeError("cleanup failed")
    with pytest.raises(type(error)) as caught, empty_cache_scope():
        raise error
    assert caught.value is error
    assert any("cleanup failed" in note for note in error.__notes__)
    mps.error = None
    assert empty_cache().devices == ("mps",)


def test_without_a_body_s_error_the_cleanup_s_is_raised(mps: FakeBackend) -> None:
    mps.error = RuntimeError("device lost")
    with pytest.raises(RuntimeError, match="device lost"), empty_cache_scope():
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_interrupt_passes_and_the_cache_is_cleared(mps: FakeBackend, error) -> None:
    with pytest.raises(type(error)) as caught, empty_cache_scope():
        raise error
    assert caught.value is error
    assert mps.clears == 1


def test_an_interrupt_during_the_clear_leaves_everything_usable(mps: FakeBackend) -> None:
    mps.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), empty_cache_scope():
        pass
    mps.error = None
    with empty_cache_scope():
        pass
    assert mps.clears == 1


def test_one_scope_nested_and_used_again(mps: FakeBackend) -> None:
    scope = empty_cache_scope()
    with scope, scope:
        with scope:
            pass
        assert mps.clears == 1
    assert mps.clears == 3


def test_async_with(mps: FakeBackend) -> None:
    async def work() -> None:
        async with empty_cache_scope():
            await asyncio.sleep(0)

    asyncio.run(work())
    assert mps.clears == 1


def test_decorating_functions_of_every_kind(mps: FakeBackend) -> None:
    @empty_cache_scope()
    def plain(a: int, *, b: int = 1) -> int:
        """Add."""
        return a + b

    @empty_cache_scope()
    async def waiting(a: int) -> int:
        return a

    @empty_cache_scope()
    def counting(n: int):
        got = 0
        for i in range(n):
            got += (yield i) or 0
        return got

    @empty_cache_scope()
    async def streaming(n: int):
        for i in range(n):
            yield i

    async def drain() -> list[int]:
        return [item async for item in streaming(3)]

    assert (plain(2, b=3), mps.clears) == (5, 1)
    assert (plain.__name__, plain.__doc__) == ("plain", "Add.")
    assert (asyncio.run(waiting(4)), mps.clears) == (4, 2)
    assert (list(counting(3)), mps.clears) == ([0, 1, 2], 3)
    assert (asyncio.run(drain()), mps.clears) == ([0, 1, 2], 4)


def test_a_decorated_generator_is_cleared_when_it_ends_not_before(mps: FakeBackend) -> None:
    @empty_cache_scope()
    def counting():
        sent.append((yield 1))
        sent.append((yield 2))
        return "end"

    sent: list = []
    running = counting()
    assert next(running) == 1
    assert running.send("a") == 2
    assert mps.clears == 0
    with pytest.raises(StopIteration) as stop:
        running.send("b")
    assert (sent, stop.value.value, mps.clears) == (["a", "b"], "end", 1)
    other = counting()
    next(other)
    other.close()
    assert mps.clears == 2


def test_a_decorated_async_generator_passes_on_what_is_sent(mps: FakeBackend) -> None:
    @empty_cache_scope()
    async def echo():
        sent.append((yield 1))
        sent.append((yield 2))

    async def use() -> None:
        running = echo()
        await anext(running)
        await running.asend("a")
        await running.aclose()
        assert mps.clears == 1

    sent: list = []
    asyncio.run(use())
    assert sent == ["a"]


def test_inside_a_generator_that_is_never_finished(mps: FakeBackend) -> None:
    def batches():
        with empty_cache_scope():
            yield 1
            yield 2

    running = batches()
    next(running)
    del running
    assert mps.clears == 1


def test_the_stack_of_a_decorated_recursion(mps: FakeBackend) -> None:
    @empty_cache_scope(collect=False)
    def down(n: int) -> int:
        return n and down(n - 1)

    assert down(5) == 0
    assert mps.clears == 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"device": 7}, ArgumentTypeError),
        ({"device": "msp"}, ArgumentError),
        ({"device": lambda: None}, ArgumentTypeError),
        ({"above": "much"}, ArgumentError),
        ({"above": -1}, ArgumentError),
        ({"above": 1.5}, ArgumentError),
        ({"above": True}, ArgumentTypeError),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments: dict, error: type) -> None:
    with pytest.raises(error):
        empty_cache_scope(**arguments)
    with pytest.raises(error):
        CacheKeeper(**arguments)


def test_only_functions_are_decorated() -> None:
    with pytest.raises(ArgumentTypeError):
        empty_cache_scope()(7)


# --- CacheKeeper ------------------------------------------------------------------------------


def test_every_so_many_steps(mps: FakeBackend) -> None:
    keeper = CacheKeeper("mps", every=3)
    reports = [keeper.step() for _ in range(10)]
    assert [report is not None for report in reports] == [False, False, True] * 3 + [False]
    assert mps.clears == 3


def test_by_default_a_quarter_of_the_device_must_be_idle(mps: FakeBackend) -> None:
    keeper = CacheKeeper()
    assert keeper.step() is not None
    mps.reserved = mps.allocated + 2 * GIB - 1
    assert keeper.step() is None
    mps.reserved += 1
    assert keeper.step() is not None


def test_both_conditions_must_hold(mps: FakeBackend) -> None:
    keeper = CacheKeeper("mps", 2, "3GiB")
    assert keeper.step() is None
    assert keeper.step() is not None
    assert keeper.step() is None
    assert keeper.step() is None


@pytest.mark.parametrize(
    ("every", "error"), [(0, ArgumentError), (-1, ArgumentError), (1.5, ArgumentTypeError)]
)
def test_wrong_steps(every, error: type) -> None:
    with pytest.raises(error):
        CacheKeeper("mps", every=every)


# --- many at once -----------------------------------------------------------------------------


def run_everywhere(turns: int) -> None:
    """Eight threads in each of two processes: no error lost, nothing left open."""
    command = [sys.executable, fake_backend.__file__, str(turns)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for child in children:
        output, _ = child.communicate()
        errors, raised, most_at_once, nothing_left = json.loads(output)
        assert errors == raised == 8 * (turns // 3)
        assert most_at_once == 1
        assert nothing_left


def test_a_report_is_read_back_from_its_json() -> None:
    report = cache.CacheReport(devices=("mps",), before_bytes=3 * GIB, after_bytes=GIB)
    assert json.loads(report.model_dump_json())["freed_bytes"] == 2 * GIB
    assert cache.CacheReport.model_validate_json(report.model_dump_json()) == report


def test_eight_threads_lose_no_error() -> None:
    threads = threading.active_count()
    errors, raised, most_at_once = hammer_in_threads(60)
    assert errors == raised == 160
    assert most_at_once == 1
    assert threading.active_count() == threads


@pytest.mark.full  # the same as below, thirty times as often
def test_eight_threads_in_two_processes_for_long() -> None:
    run_everywhere(600)


def test_eight_threads_in_two_processes_briefly() -> None:
    run_everywhere(20)


def test_no_interrupt_keeps_the_lock(mps):
    lines = 0
    for _ in interrupted_at_each_line(lambda: cache.clear("mps", collect=False)):
        lines += 1
        assert not cache._locks[os.getpid()].locked()
    assert lines > 20
