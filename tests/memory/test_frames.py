"""After an out-of-memory error the traceback must not keep tensors alive."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref

import pytest
import torch

from mpskit.memory import empty_cache_scope
from mpskit.memory.frames import release_frames

OOM = (
    "MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations: 1.00 GiB, max allowed:"
    " 9.07 GiB). Tried to allocate 1.00 GiB on private pool."
)


def step(refs: list, error: BaseException) -> None:
    """A training step that holds tensors in two frames when it fails."""
    outer = torch.ones(4)
    refs.append(weakref.ref(outer))

    def inner(activation: torch.Tensor) -> None:
        saved = activation * 2
        refs.append(weakref.ref(saved))
        raise error

    inner(outer)


def alive(refs: list) -> list:
    gc.collect()
    return [ref() for ref in refs if ref() is not None]


def test_tensors_of_an_oom_die_while_the_exception_lives() -> None:
    refs: list = []
    with pytest.raises(RuntimeError) as caught, empty_cache_scope():
        step(refs, RuntimeError(OOM))
    assert len(refs) == 2
    assert alive(refs) == []
    # The text of the traceback is as it was.
    assert "in inner" in "".join(traceback.format_exception(caught.value))


def test_tensors_of_any_other_error_stay_for_the_debugger() -> None:
    refs: list = []
    with pytest.raises(ValueError, match="shape") as caught, empty_cache_scope():
        step(refs, ValueError("shape"))
    assert len(alive(refs)) == 2
    del caught


def test_without_the_scope_they_would_stay() -> None:
    refs: list = []
    with pytest.raises(RuntimeError) as caught:
        step(refs, RuntimeError(OOM))
    assert len(alive(refs)) == 2
    assert release_frames(caught.value) >= 2
    assert alive(refs) == []


def test_after_false_still_lets_the_tensors_go() -> None:
    refs: list = []
    with pytest.raises(RuntimeError), empty_cache_scope(after=False):
        step(refs, RuntimeError(OOM))
    assert alive(refs) == []


def test_the_errors_that_led_to_it_let_go_too() -> None:
    refs: list = []

    def body() -> None:
        try:
            step(refs, ValueError("first"))
        except ValueError as first:
            kept.append(first)
            try:
                step(refs, RuntimeError(OOM))
            except RuntimeError as second:
                raise RuntimeError(OOM) from second

    kept: list = []
    with pytest.raises(RuntimeError) as caught, empty_cache_scope():
        body()
    assert len(refs) == 4
    assert alive(refs) == []
    del caught


def test_members_of_a_group_let_go_too() -> None:
    refs: list = []
    errors = []
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            step(refs, RuntimeError(OOM))
        errors.append(caught.value)
    del caught
    with pytest.raises(ExceptionGroup) as group, empty_cache_scope():
        raise ExceptionGroup("all", errors)
    assert alive(refs) == []
    del group


def test_a_generator_in_the_traceback_is_not_closed() -> None:
    closed = []

    def numbers():
        held = torch.ones(3)
        try:
            while True:
                try:
                    yield held
                except RuntimeError as error:
                    # It goes on after the error that passed through it.
                    errors.append(error)
        finally:
            closed.append(True)

    errors: list = []
    running = numbers()
    next(running)
    running.throw(RuntimeError(OOM))
    assert any(
        frame.f_code.co_name == "numbers" for frame, _ in traceback.walk_tb(errors[0].__traceback__)
    )
    release_frames(errors[0])
    assert closed == []
    assert torch.equal(next(running), torch.ones(3))
    running.close()
    assert closed == [True]


def test_a_coroutine_in_the_traceback_is_left_alone() -> None:
    refs: list = []

    async def waiting() -> str:
        held = torch.ones(3)
        try:
            step(refs, RuntimeError(OOM))
        except RuntimeError as error:
            release_frames(error)
            await asyncio.sleep(0)
        return f"{held.sum().item():.0f}"

    assert asyncio.run(waiting()) == "3"
    assert alive(refs) == []


def test_the_frame_of_the_with_keeps_its_variables() -> None:
    mine = torch.ones(2)
    with pytest.raises(RuntimeError), empty_cache_scope():
        step([], RuntimeError(OOM))
    assert mine.sum() == 2


def test_a_chain_that_goes_round_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__context__, second.__context__ = second, first
    assert release_frames(first) == 0


def test_a_finished_generator_lets_go() -> None:
    refs: list = []

    def numbers():
        held = torch.ones(3)
        refs.append(weakref.ref(held))
        yield 1
        raise RuntimeError(OOM)

    running = numbers()
    next(running)
    with pytest.raises(RuntimeError) as caught:
        next(running)
    release_frames(caught.value)
    assert alive(refs) == []
    assert next(running, "ended") == "ended"


def test_a_finished_coroutine_and_async_generator_let_go() -> None:
    refs: list = []

    async def items():
        held = torch.ones(3)
        refs.append(weakref.ref(held))
        yield 1
        step(refs, RuntimeError(OOM))

    async def run() -> None:
        held = torch.ones(3)
        refs.append(weakref.ref(held))
        await asyncio.sleep(0)
        async for _ in items():
            pass

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(run())
    assert len(refs) == 4
    release_frames(caught.value)
    assert alive(refs) == []


def test_a_generator_that_delegates_is_not_closed_by_what_it_caught() -> None:
    def inner():
        step([], RuntimeError(OOM))
        yield

    def outer():
        held = torch.ones(3)
        try:
            yield from inner()
        except RuntimeError as error:
            errors.append(error)
        yield held

    errors: list = []
    running = outer()
    assert torch.equal(next(running), torch.ones(3))
    release_frames(errors[0])
    assert next(running, None) is None
