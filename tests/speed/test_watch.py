"""One step as it is watched: its waits, its fallbacks, its loader, and nothing left behind."""

import threading

import pytest
import torch

from interrupting import interrupted_at_each_line
from mpskit import simulate
from mpskit.dispatch import patches
from mpskit.speed.watch import Wait, watch


@pytest.fixture
def x():
    with simulate("m1-8gb"):
        yield torch.ones(4, 4, device="mps")


@pytest.mark.parametrize(
    ("step", "wait"),
    [
        (lambda x: x.sum().item(), Wait.VALUE),
        (lambda x: bool(x.sum() > 0), Wait.VALUE),
        (lambda x: x.cpu(), Wait.COPY),
        (lambda x: x.to("cpu"), Wait.COPY),
        (lambda x: x[x > 0], Wait.SHAPE),
        (lambda _: torch.mps.empty_cache(), Wait.CACHE),
    ],
    ids=["item", "bool", "cpu", "to", "mask", "empty_cache"],
)
def test_each_wait_is_seen_at_its_line(x, step, wait):
    found = watch(lambda: step(x), "mps")
    ((kind, place),) = found.waits
    assert kind is wait
    assert place.split(":")[0].endswith("test_watch.py")


def test_a_print_is_a_wait(x):
    assert Wait.PRINT in {kind for kind, _ in watch(lambda: repr(x), "mps").waits}


def test_work_on_the_cpu_does_not_wait(x):
    host = torch.ones(4)
    found = watch(lambda: host.sum().item(), "mps")
    assert not found.waits
    assert found.counts.launches == 0
    assert not watch(lambda: host.sum().item(), "cpu").waits


def test_shapes_tell_steps_apart(x):
    same = {watch(lambda: x + x, "mps").shapes for _ in range(2)}
    assert len(same) == 1
    assert watch(lambda: x[:2] + x[:2], "mps").shapes not in same


def test_the_loader_is_timed():
    loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=4, num_workers=0)
    assert watch(lambda: list(loader), "cpu").loader_seconds > 0


def test_a_missing_kernel_is_a_fallback(x):
    found = watch(lambda: x + 1, "mps", missing=lambda func: "add" in str(func))
    assert [name for name, _ in found.fallbacks] == ["add"]


def test_nothing_stays_patched_wherever_it_is_interrupted():
    def changed():
        return torch.Tensor.__repr__, torch.autocast.__enter__, torch.cuda.empty_cache

    before, y = changed(), torch.ones(2)
    count = 0
    for _ in interrupted_at_each_line(lambda: watch(lambda: y + y, "cpu")):
        count += 1
        assert changed() == before
        # Another thread may be on a Mac for good, as tqdm's monitor after a rehearsed download.
        assert not any(threading.get_ident() in slot.bound for slot in patches._SLOTS.values())
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert count > 50
