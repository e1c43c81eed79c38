"""run_with_batch_size, and the rule for the next size."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from fake_backend import GIB, FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit import OutOfMemory, run_with_batch_size
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceFallbackWarning
from mpskit.memory import next_batch_size
from mpskit.memory.oom import OomFigures, parse_oom

MIB = 2**20


def oom_text(allocated: float, requested: float, limit: float = 9.07) -> str:
    return (
        f"MPS backend out of memory (MPS allocated: {allocated:.2f} GiB, other allocations: "
        f"0.00 MiB, max allowed: {limit:.2f} GiB). Tried to allocate {requested:.2f} GiB on "
        "private pool."
    )


class Training:
    """A step that needs 1 GiB and 0.2 GiB an item, of which the last allocation is a tenth."""

    def __init__(self, fits: float = 9.07) -> None:
        self.fits = fits
        self.sizes: list[int] = []

    def __call__(self, batch_size: int) -> int:
        self.sizes.append(batch_size)
        need = 1 + 0.2 * batch_size
        if need > self.fits:
            last = 0.02 * batch_size
            raise RuntimeError(oom_text(self.fits - last / 2, last, self.fits))
        return batch_size


def figures(**changes) -> OomFigures:
    known = {"backend": "mps", "kind": "limit", "allocated": 8 * GIB, "other": 0}
    return OomFigures(**(known | {"max_allowed": 9 * GIB, "requested": 4 * GIB} | changes))


# figures, keywords, size that failed -> next
RULE = [
    # needed 12 of 9: 64 * 9/12 = 48, and 0.9 of it
    (figures(), {}, 64, 43),
    # 4 GiB of weights do not grow: 64 * 5/8 = 40, and 0.9 of it
    (figures(), {"base_bytes": 4 * GIB}, 64, 36),
    (figures(), {"failures": 2}, 64, 36),
    (figures(), {"failures": 3}, 64, 24),
    (figures(), {"failures": 9}, 64, 24),
    # the weights alone are over the limit: only the least is worth a try
    (figures(), {"base_bytes": 10 * GIB}, 64, 1),
    (figures(), {"base_bytes": 10 * GIB, "min": 8}, 64, 8),
    # nearly fits: smaller all the same
    (figures(requested=1), {}, 64, 57),
    (figures(requested=1), {}, 3, 2),
    # what the driver holds for others counts as held
    (figures(other=8 * GIB), {}, 64, 25),
    # a card: 24 of which 2 free, 10 torch's own, 12 someone else's
    (
        figures(
            backend="cuda",
            max_allowed=24 * GIB,
            free=2 * GIB,
            cached=0,
            allocated=10 * GIB,
            other=None,
            requested=6 * GIB,
        ),
        {},
        64,
        43,
    ),
    # under a cap of 8 the card's free memory is no room
    (
        figures(
            backend="cuda",
            max_allowed=8 * GIB,
            free=60 * GIB,
            cached=0,
            allocated=7 * GIB,
            other=None,
            requested=3 * GIB,
        ),
        {},
        100,
        72,
    ),
    # one buffer of 16 where the largest is 6: nothing else counts
    (figures(kind="buffer", requested=16 * GIB), {"max_buffer_bytes": 6 * GIB}, 64, 21),
    (figures(kind="buffer", requested=16 * GIB), {}, 64, 32),
    # without figures: half
    (OomFigures(), {}, 64, 32),
    (OomFigures(), {}, 3, 1),
    (figures(max_allowed=None), {}, 64, 32),
    (figures(allocated=None), {}, 64, 32),
    (figures(requested=None), {}, 64, 32),
]


@pytest.mark.parametrize(("known", "keywords", "size", "expected"), RULE)
def test_the_rule(known: OomFigures, keywords: dict, size: int, expected: int) -> None:
    assert next_batch_size(size, known, **keywords) == expected


amounts = st.none() | st.integers(0, 2**60)


@settings(deadline=None)
@given(
    size=st.integers(2, 10**6),
    least=st.integers(1, 10**6),
    known=st.builds(
        OomFigures,
        kind=st.sampled_from(["limit", "buffer", "driver", None]),
        allocated=amounts,
        other=amounts,
        max_allowed=amounts,
        requested=amounts,
        free=amounts,
        cached=amounts,
    ),
    failures=st.integers(1, 50),
    base=st.integers(0, 2**60),
    largest=amounts,
)
def test_the_next_size_is_smaller_and_not_below_the_least(
    size, least, known, failures, base, largest
) -> None:
    least = min(least, size - 1)
    found = next_batch_size(
        size, known, failures=failures, base_bytes=base, max_buffer_bytes=largest, min=least
    )
    assert least <= found < size


def test_it_finds_a_size_that_fits_and_uses_the_figures() -> None:
    training = Training()
    result = run_with_batch_size(training, 64)
    assert training.sizes[0] == 64
    assert training.sizes == sorted(training.sizes, reverse=True)
    # 40 is the most that fits; blind halving would end at 32
    assert 32 < result <= 40
    assert len(training.sizes) <= 4


def test_a_size_that_fits_is_tried_once() -> None:
    training = Training()
    assert run_with_batch_size(training, 16) == 16
    assert training.sizes == [16]


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(1.2, 200))
def test_whatever_fits_is_found_within_few_tries(start: int, fits: float) -> None:
    training, size, failures = Training(fits), start, 0
    while True:
        try:
            training(size)
            break
        except RuntimeError as error:
            failures += 1
            size = next_batch_size(size, parse_oom(str(error)), failures=failures)
    assert failures <= 3 + start.bit_length()


def test_below_the_least_the_original_is_the_cause() -> None:
    training = Training()
    with pytest.raises(OutOfMemory) as caught:
        run_with_batch_size(training, 64, min=50)
    assert training.sizes == [64, 53, 50]
    error = caught.value
    assert isinstance(error.__cause__, RuntimeError)
    assert "MPS backend out of memory" in str(error.__cause__)
    assert error.given == 50
    assert "1. Use a smaller batch" in str(error)
    assert isinstance(error, MemoryError)


@pytest.mark.parametrize("error", [ValueError("shape"), RuntimeError("mat1"), KeyboardInterrupt()])
def test_any_other_error_is_raised_at_once_untouched(error: BaseException) -> None:
    sizes: list[int] = []
    refs: list = []

    def step(batch_size: int) -> None:
        held = torch.ones(3)
        refs.append(weakref.ref(held))
        sizes.append(batch_size)
        raise error

    with pytest.raises(type(error)) as caught:
        run_with_batch_size(step, 64)
    assert caught.value is error
    assert sizes == [64]
    assert error.__cause__ is None
    assert not hasattr(error, "__notes__")
    assert refs[0]() is not None, "a debugger still finds the variables"


def test_the_failed_call_s_tensors_are_gone_before_the_next(mps: FakeBackend) -> None:
    refs: list = []

    def step(batch_size: int) -> int:
        assert [ref() for ref in refs if ref() is not None] == []
        activation = torch.ones(batch_size)
        cycle = [activation]
        cycle.append(cycle)
        refs.append(weakref.ref(activation))
        if batch_size > 8:
            raise RuntimeError(oom_text(9, 1))
        return batch_size

    assert run_with_batch_size(step, 64) <= 8
    assert len(refs) > 2
    assert mps.clears == len(refs) - 1
    gc.collect()


def test_what_was_there_before_does_not_scale(mps: FakeBackend) -> None:
    sizes = []

    def step(batch_size: int) -> None:
        sizes.append(batch_size)
        if len(sizes) == 1:
            raise RuntimeError(oom_text(8, 4, 9))

    mps.allocated = 4 * GIB
    run_with_batch_size(step, 64)
    assert sizes == [64, 36]


def test_the_device_s_largest_buffer_counts(mps: FakeBackend) -> None:
    sizes = []

    def step(batch_size: int) -> None:
        sizes.append(batch_size)
        if len(sizes) == 1:
            raise RuntimeError("Invalid buffer size: 16.00 GiB")

    mps.max_buffer = 6 * GIB
    run_with_batch_size(step, 64, device="mps")
    assert sizes == [64, 21]


def test_a_cleanup_that_fails_does_not_hide_the_error(mps: FakeBackend) -> None:
    mps.error = RuntimeError("device lost")
    with pytest.raises(OutOfMemory) as caught:
        run_with_batch_size(Training(), 64, min=64)
    assert any("device lost" in note for note in caught.value.__cause__.__notes__)


# --- the decorator ----------------------------------------------------------------------------


def test_every_argument_is_kept() -> None:
    @run_with_batch_size(start=64)
    def train(batch_size, model, *rest, epochs=1, **more):
        """Train."""
        if batch_size > 20:
            raise RuntimeError(oom_text(9, 1))
        return batch_size, model, rest, epochs, more

    size, *others = train("model", 1, 2, epochs=3, seed=4)
    assert size <= 20
    assert others == ["model", (1, 2), 3, {"seed": 4}]
    assert (train.__name__, train.__doc__) == ("train", "Train.")


def test_a_method_and_an_argument_in_the_middle() -> None:
    class Trainer:
        @run_with_batch_size(start=8)
        def fit(self, data, batch_size, lr=0.1):
            return type(self).__name__, data, batch_size, lr

    assert Trainer().fit("data") == ("Trainer", "data", 8, 0.1)
    assert Trainer().fit("data", 0.2) == ("Trainer", "data", 8, 0.2)
    assert Trainer().fit(data="data", lr=0.3) == ("Trainer", "data", 8, 0.3)


def test_a_method_that_calls_it_otherwise_keeps_its_object() -> None:
    class Trainer:
        @run_with_batch_size(8)
        def fit(self, size, lr=0.1):
            return type(self).__name__, size, lr

    assert Trainer().fit(lr=1) == ("Trainer", 8, 1)
    assert run_with_batch_size(Trainer.fit.__wrapped__.__get__(Trainer()), 4)[1] == 4


def test_keyword_only_another_name_and_a_caller_s_own_start() -> None:
    @run_with_batch_size(start=8)
    def named(*, batch_size):
        return batch_size

    @run_with_batch_size(start=8)
    def other(n, word):
        return n, word

    assert named() == 8
    assert run_with_batch_size(16)(named.__wrapped__)() == 16
    assert named(batch_size=4) == 4
    assert other("x") == (8, "x")
    with pytest.raises(ArgumentError):
        named(batch_size=0)
    assert run_with_batch_size(functools.partial(other.__wrapped__, word="y"), 2) == (2, "y")
    assert run_with_batch_size(lambda n: n, 5) == 5
    assert run_with_batch_size(bytes, 3) == b"\0\0\0"


# --- the fallback -----------------------------------------------------------------------------


def test_the_fallback_is_used_and_told() -> None:
    calls = []

    def train(batch_size, device="mps"):
        calls.append((batch_size, device))
        if device != "cpu":
            raise RuntimeError(oom_text(9, 1))
        return "done"

    with pytest.warns(DeviceFallbackWarning, match="CPU") as told:
        assert run_with_batch_size(train, 4, fallback="cpu") == "done"
    assert told[0].filename == __file__
    assert calls[-1] == (4, "cpu")
    assert {device for _, device in calls[:-1]} == {"mps"}

    wrapped = run_with_batch_size(start=4, fallback="cpu", device="mps")(train)
    with pytest.warns(DeviceFallbackWarning) as told:
        assert wrapped() == "done"
    assert told[0].filename == __file__


def test_a_fallback_that_does_not_fit_either_is_an_error() -> None:
    def train(batch_size, device="mps"):
        raise RuntimeError("std::bad_alloc" if device == "cpu" else oom_text(9, 1))

    with pytest.warns(DeviceFallbackWarning), pytest.raises(OutOfMemory) as caught:
        run_with_batch_size(train, 4, fallback="cpu")
    assert str(caught.value.__cause__) == "std::bad_alloc"


def test_the_device_is_passed_on_unless_the_caller_gave_one() -> None:
    def train(batch_size, device=None):
        return device

    assert run_with_batch_size(train, 4, device="cpu") == "cpu"
    assert run_with_batch_size(start=4, device="cpu")(train)(device="meta") == "meta"
    assert run_with_batch_size(lambda batch_size: batch_size, 4, device="cpu") == 4


# --- wrong arguments --------------------------------------------------------------------------


async def _coroutine(batch_size: int) -> None: ...


def _generator(batch_size: int):
    yield batch_size


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        ((len, 0), {}, ArgumentError),
        ((len, -4), {}, ArgumentError),
        ((len, 4.0), {}, ArgumentTypeError),
        ((len, True), {}, ArgumentTypeError),
        ((len, "8"), {}, ArgumentTypeError),
        ((len,), {}, ArgumentTypeError),
        ((True,), {}, ArgumentTypeError),
        ((64, 64), {}, ArgumentTypeError),
        ((len, 4), {"min": 8}, ArgumentError),
        ((len, 4), {"min": 0}, ArgumentError),
        ((len, 4), {"fallback": "cuda"}, ArgumentError),
        ((lambda n: n, 4), {"fallback": "cpu"}, ArgumentError),
        ((len, 4), {"device": "msp"}, ArgumentError),
        ((_coroutine, 4), {}, ArgumentTypeError),
        ((_generator, 4), {}, ArgumentTypeError),
    ],
)
def test_wrong_arguments(arguments, keywords, error: type) -> None:
    with pytest.raises(error):
        run_with_batch_size(*arguments, **keywords)


def test_the_real_cpu_allocator() -> None:
    def step(batch_size: int) -> int:
        # 100 TiB an item at 2**20 items: more than any address space that is not overcommitted
        torch.empty(batch_size * 100 * MIB * MIB if batch_size > 8 else 8, dtype=torch.uint8)
        return batch_size

    assert parse_oom("std::bad_alloc").backend == "cpu"
    assert run_with_batch_size(step, 64) == 8
