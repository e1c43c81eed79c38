"""run_with_batch_size: what is tried, what is let go between two tries, and what is kept."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from fake_backend import GIB, FakeBackend

from mpskit import OutOfMemory, run_with_batch_size
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceFallbackWarning
from mpskit.memory import retry
from mpskit.memory.oom import parse_oom

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


def test_it_finds_the_size_that_fits_or_nearly() -> None:
    training = Training()
    result = run_with_batch_size(training, 64)
    assert training.sizes[0] == 64
    # 40 is the most that fits
    assert 36 <= result <= 40
    assert len(set(training.sizes)) == len(training.sizes) <= 6


def test_a_size_that_fits_is_tried_once() -> None:
    training = Training()
    assert run_with_batch_size(training, 16) == 16
    assert training.sizes == [16]


def test_below_the_least_the_original_is_the_cause() -> None:
    training = Training()
    with pytest.raises(OutOfMemory) as caught:
        run_with_batch_size(training, 64, min=50)
    assert training.sizes == [64, 50]
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

    assert run_with_batch_size(step, 64) == 8
    assert len(refs) > 2
    assert mps.clears >= len(refs) - 1
    gc.collect()


def test_what_a_size_needed_tells_the_next(mps: FakeBackend) -> None:
    """4 GiB of weights, 0.125 GiB an item and a limit of 9 GiB: 40 items."""
    sizes = []

    def step(batch_size: int) -> int:
        sizes.append(batch_size)
        mps.reserved = 4 * GIB + batch_size * GIB // 8
        if mps.reserved > 9 * GIB:
            mps.reserved = 9 * GIB
            raise RuntimeError(oom_text(8.9, 0.2, 9))
        return batch_size

    mps.allocated = mps.reserved = 4 * GIB
    # A quarter of what failed is enough to read the need, and 0.97 of the prediction is tried.
    assert run_with_batch_size(step, 64) == 38
    assert sizes == [64, 16, 38]


def test_the_device_s_largest_buffer_counts(mps: FakeBackend) -> None:
    sizes = []

    def step(batch_size: int) -> None:
        sizes.append(batch_size)
        if batch_size > 24:
            raise RuntimeError("Invalid buffer size: 16.00 GiB")

    mps.max_buffer = 6 * GIB
    run_with_batch_size(step, 64, device="mps")
    assert sizes == [64, 24]


def test_a_cleanup_that_fails_does_not_hide_the_error(mps: FakeBackend) -> None:
    mps.error = RuntimeError("device lost")
    with pytest.raises(OutOfMemory) as caught:
        run_with_batch_size(Training(), 64, min=64)
    assert any("device lost" in note for note in caught.value.__cause__.__notes__)


# --- training: a step that reaches its optimizer has fitted --------------------------------------


class Trainer:
    """A loop over two steps, of which a batch of ``fits`` at most has the memory."""

    def __init__(self, fits: int, *, backward: bool = False) -> None:
        self.fits = fits
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.sizes: list[int] = []
        self.before: list = []
        self.steps = 0
        # Fail after the backward pass instead of before it.
        self.backward = backward

    def __call__(self, batch_size: int, accumulate: int = 1) -> int:
        self.sizes.append(batch_size)
        self.before.append(self.model.weight.grad)
        for _ in range(2):
            for _ in range(accumulate):
                if not self.backward:
                    self.allocate(batch_size)
                self.model(torch.ones(batch_size, 3)).sum().backward()
                self.allocate(batch_size)
            self.optimizer.step()
            self.steps += 1
            self.optimizer.zero_grad()
        return batch_size

    def allocate(self, batch_size: int) -> None:
        if batch_size > self.fits:
            raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize("backward", [False, True])
def test_a_training_is_trained_once_and_near_the_largest(backward: bool) -> None:
    trainer = Trainer(40, backward=backward)
    assert 36 <= run_with_batch_size(trainer, 64) <= 40
    assert trainer.steps == 2, "calls that were left have changed no weight"
    assert 32 in trainer.sizes, "a size that fits was left for a larger one"
    assert trainer.before == [None] * len(trainer.sizes)


def test_the_largest_that_was_left_is_run_to_its_end() -> None:
    trainer = Trainer(32)
    assert run_with_batch_size(trainer, 64) == 32
    assert trainer.sizes.count(32) == 2
    assert trainer.steps == 2


def test_a_closure_is_left_too() -> None:
    model, calls = torch.nn.Linear(3, 1), []

    def train(batch_size: int) -> int:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def closure() -> torch.Tensor:
            if batch_size > 20:
                raise RuntimeError("CUDA error: out of memory")
            loss = model(torch.ones(batch_size, 3)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        calls.append(batch_size)
        return batch_size

    assert 18 <= run_with_batch_size(train, 64) <= 20
    assert len(calls) == 1


def test_a_call_that_hides_that_it_was_left_does_not_count() -> None:
    trainer = Trainer(40)

    def train(batch_size: int) -> int:
        try:
            return trainer(batch_size)
        except RuntimeError:
            raise
        except BaseException:  # what careless loops do
            return -1

    assert 36 <= run_with_batch_size(train, 64) <= 40


def test_an_optimizer_s_states_may_come_after_the_first_step() -> None:
    model = torch.nn.Linear(3, 1)

    def train(batch_size: int) -> int:
        optimizer = torch.optim.Adam(model.parameters())
        for limit in (40, 20):
            if batch_size > limit:
                raise RuntimeError("CUDA error: out of memory")
            optimizer.zero_grad()
            model(torch.ones(batch_size, 3)).sum().backward()
            optimizer.step()
        return batch_size

    assert 18 <= run_with_batch_size(train, 64) <= 20


def test_states_to_come_count_where_memory_is_measured(mps: FakeBackend) -> None:
    """0.125 GiB an item, a limit of 8 GiB, and Adam's states of 2 GiB: 48 items."""
    model, sizes = torch.nn.Linear(3, 1, bias=False), []
    mps.allocated = mps.reserved = 0

    def train(batch_size: int) -> int:
        sizes.append(batch_size)
        optimizer = torch.optim.Adam(model.parameters())
        for states in (0, 2 * GIB):
            mps.reserved = states + batch_size * GIB // 8
            if mps.reserved > 8 * GIB:
                mps.reserved = 8 * GIB
                raise RuntimeError(oom_text(7.9, 0.2, 8))
            model(torch.ones(batch_size, 3)).sum().backward()
            optimizer.step()
        return batch_size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "states_to_come", lambda optimizer: 2 * GIB)
        size = run_with_batch_size(train, 96)
    assert 43 <= size <= 48
    assert len(sizes) <= 4


def test_a_failure_in_a_later_step_still_tells_the_search(mps: FakeBackend) -> None:
    """What the first two steps need says 1,024 items; the third has room for 200 only."""
    model, sizes = torch.nn.Linear(3, 1), []
    mps.allocated = 0

    def train(batch_size: int) -> int:
        sizes.append(batch_size)
        assert len(sizes) < 20
        optimizer = torch.optim.SGD(model.parameters())
        for limit in (1024, 1024, 200):
            mps.reserved = batch_size * 8 * MIB
            if batch_size > limit:
                raise RuntimeError(oom_text(7.9, 0.2, 8))
            model(torch.ones(batch_size, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return batch_size

    assert 180 <= run_with_batch_size(train, 2048) <= 200


def test_without_repeat_the_first_size_that_fits_is_final() -> None:
    trainer = Trainer(40)
    assert run_with_batch_size(trainer, 64, repeat=False) == 32
    assert trainer.sizes == [64, 32]


def test_a_call_that_took_long_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 11))
    monkeypatch.setattr(retry, "_clock", lambda: next(now))
    training = Training()
    assert run_with_batch_size(training, 64) == training.sizes[-1] == 32


def test_an_interrupt_goes_through_and_nothing_watches_any_more() -> None:
    from torch.optim import optimizer

    before = len(optimizer._global_optimizer_pre_hooks)

    def step(batch_size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with_batch_size(step, 4)
    assert len(optimizer._global_optimizer_pre_hooks) == before


# --- gradients -------------------------------------------------------------------------------


def test_a_micro_step_leaves_the_gradients_of_one_call() -> None:
    model = torch.nn.Linear(3, 1)

    def micro_step(batch_size: int) -> int:
        model(torch.ones(batch_size, 3)).sum().backward()
        if batch_size > 40:
            raise RuntimeError("CUDA error: out of memory")
        return batch_size

    size = run_with_batch_size(micro_step, 64)
    assert 36 <= size <= 40
    assert torch.equal(model.bias.grad, torch.tensor([float(size)]))


def test_gradients_of_before_are_kept_or_the_retry_is_refused() -> None:
    model = torch.nn.Linear(3, 1)

    def forward_fails(batch_size: int) -> int:
        if batch_size > 40:
            raise RuntimeError("CUDA error: out of memory")
        model(torch.ones(batch_size, 3)).sum().backward()
        return batch_size

    def backward_fails(batch_size: int) -> None:
        model(torch.ones(batch_size, 3)).sum().backward()
        raise RuntimeError("CUDA error: out of memory")

    model(torch.ones(1, 3)).sum().backward()
    # The first size that fits is final: its gradients cannot be told from those of before.
    assert run_with_batch_size(forward_fails, 64) == 32
    assert torch.equal(model.bias.grad, torch.tensor([33.0]))
    with pytest.raises(OutOfMemory, match="zero_grad") as caught:
        run_with_batch_size(backward_fails, 64)
    assert "CUDA error" in str(caught.value.__cause__)


# --- the effective batch ------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "fits", "size"), [(None, 20, 16), (32, 31, 16), (8, 9, 8)])
def test_the_effective_batch_is_kept(start, fits, size) -> None:
    calls = []

    def train(batch_size: int, *, accumulate: int) -> None:
        calls.append((batch_size, accumulate))
        if batch_size > fits:
            raise RuntimeError("CUDA error: out of memory")

    run_with_batch_size(train, start, effective=32)
    assert calls[-1] == (size, 32 // size)
    assert all(batch * times == 32 for batch, times in calls)

    wrapped = run_with_batch_size(effective=24)(train)
    wrapped(batch_size=12)
    assert calls[-1] == (8, 3) if fits == 9 else (12, 2)
    with pytest.raises(ArgumentError, match="24"):
        wrapped(batch_size=7)


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
        ((len, 12), {"effective": 32}, ArgumentError),
        ((len, 8), {"effective": 0}, ArgumentError),
        ((len, 8), {"effective": 8.0}, ArgumentTypeError),
        ((lambda n: n, 8), {"effective": 32}, ArgumentError),
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
